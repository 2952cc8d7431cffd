"""``python -m edgeml.cli`` is ``edgeml``."""

from edgeml.cli import main

main()
