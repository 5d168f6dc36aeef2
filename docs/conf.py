"""The site: `make docs` builds it into build/docs.

Its source folder is the whole checkout, so that links between pages, studies and files are those of a code host.
"""

import sys
from pathlib import Path

import rdm

sys.path.insert(0, str(Path(__file__).parent))  # made.py

project, author, copyright = "rdm", "The rdm authors", "2026, the rdm authors"
release = rdm.__version__
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**", "experiments/**", "examples/**"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "made"]
default_role = "literal"
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other libraries, whose sites are not asked
autodoc_member_order = "bysource"
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # the gallery is a page's second level
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"rdm {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_extra_path = ["static/index.html"]
html_copy_source = html_show_sphinx = False
