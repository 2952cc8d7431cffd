"""One small file per family of operators."""
