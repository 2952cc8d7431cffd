"""The dashboard: pages over the API, on the same server."""
