"""How `make docs` builds the site: Sphinx with MyST's Markdown and numpydoc's docstrings."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import generated

from spptransfer import __version__

# Sphinx reads what lies in its folder.
HERE = Path(__file__).parent
(HERE / "_notebooks").mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copyfile(notebook, HERE / "_notebooks" / notebook.name)

project = "spptransfer"
version = release = __version__
copyright = "the authors of spptransfer; BSD 3-Clause"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # committed with their outputs; the tests execute them
nb_merge_streams = True
autodoc_typehints = "none"  # numpydoc's Parameters say them
templates_path = ["_templates"]
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "spptransfer"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "navbar_align": "left",
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}


def fill_in(app: object, page: str, source: list[str]) -> None:
    """Put what is generated in the places of its comments, and copies in those of notebooks."""
    source[0] = source[0].replace("](../notebooks/", "](_notebooks/")
    for name, write in generated.PARTS.items():
        comment = f"<!-- generated: {name} -->"
        if comment in source[0]:
            source[0] = source[0].replace(comment, write())


def leave_out(app: object, kind: str, name: str, *rest: object) -> bool | None:
    """Leave out the methods that scikit-learn makes for its metadata routing."""
    return True if name.startswith("set_") and name.endswith("_request") else None


def setup(app: object) -> None:
    """Connect with Sphinx."""
    app.connect("autodoc-skip-member", leave_out)
    app.connect("source-read", fill_in)
