"""Parts of the portable quantisation: ranges, parameters, the rewritten graph."""
