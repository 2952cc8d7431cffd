"""Facts about the layers of a model: how exact, how fast, and in how many bits each one is."""
