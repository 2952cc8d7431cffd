"""One mergeable statistic or one sequential test per file."""
