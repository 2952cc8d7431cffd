"""The peers of ``edgeml convert``, each as its users find it, in an environment of their own."""
