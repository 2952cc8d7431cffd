"""``edgeml demo``: the whole job on embedded defaults, with real processes on loopback."""
