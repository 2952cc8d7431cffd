"""The converter: sources, passes, recipes, search, choice."""
