"""Configuration of the documentation."""

import re
from pathlib import Path

project = "edgeml"
author = "The edgeml developers"
copyright = "The edgeml developers"
release = re.search(
    r'__version__ = "(.+)"',
    Path(__file__).parents[1].joinpath("src/edgeml/__init__.py").read_text(),
).group(1)
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"edgeml {release}"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_member_order = "bysource"
