"""The data plane: HTTP, engine, batcher, fallback."""
