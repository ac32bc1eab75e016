"""The site: `make docs` builds it into docs/_build/html. Nothing is fetched while it is built."""

from importlib import metadata

project = "bertsmith"
author = "bertsmith contributors"
release = metadata.version("bertsmith")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
smartquotes = False  # they would make a dash of the two hyphens of a flag

autodoc_member_order = "bysource"
autodoc_typehints = "none"
default_role = "py:obj"  # of single backquotes in docstrings
python_use_unqualified_type_names = True
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "bertsmith"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
