"""The search for one profile: what to try, build, look at, check, measure and choose.

``run`` is the order of things; ``prepare`` builds and checks; ``prescreen`` drops losers before
they are timed; ``measuring`` times in turns; ``settle`` chooses and measures the winner again.
"""

from edgeml_converters.search.run import EFFORTS, Effort, Found, Terms, search

__all__ = ["EFFORTS", "Effort", "Found", "Terms", "search"]
