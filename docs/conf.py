"""Sphinx reads the tree that build.py assembles; nothing is executed and nothing comes from the network."""
import sys
from functools import cache
from importlib.metadata import version as installed_version
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.search.en import SearchEnglish
from sphinx.util.docutils import SphinxRole

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
from chapters import chapter_of_module  # noqa: E402

project = "ptycho_nb"
copyright = "2026, the ptycho_nb authors"
version = release = installed_version("ptycho_nb")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.mathjax", "numpydoc"]
exclude_patterns: list[str] = []

# Notebooks: their stored outputs.
nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_render_markdown_format = "myst"
nb_ipywidgets_js: dict = {}
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The reference, from the docstrings.
autosummary_generate = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
add_module_names = False
default_role = "py:obj"  # `name` in a docstring is code, and a link where the name is public
suppress_warnings = ["ref.citation"]  # numpydoc: a reference that only the section References names

highlight_language = "none"  # of code that does not say what it is

# The look. MathJax is copied into _static by build.py.
html_theme = "pydata_sphinx_theme"
html_title = "ptycho_nb"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}  # its accessibility menu would load more
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "show_prev_next": True,
    "secondary_sidebar_items": ["page-toc"],
}
html_sidebars = {page: [] for page in ("index", "start", "decisions", "contributing", "changelog")}


class ChapterRole(SphinxRole):
    "{chapter}`physics.forward`: a link to the chapter that this module is written in, under its title."

    known = chapter_of_module()

    def run(self):
        chapter = self.known.get(self.text)
        if chapter is None:
            return [], [self.inliner.reporter.error(f"no notebook exports the module {self.text!r}", line=self.lineno)]
        link = addnodes.pending_xref(
            "", nodes.inline("", chapter.title), refdomain="std", reftype="doc", refexplicit=True, refwarn=True,
            reftarget=f"/{chapter.page}", refdoc=self.env.docname)
        return [link], []


def readable_signature(app, what, name, value, options, signature, returns):
    "A default that is made anew each time has no value to show, and `<factory>` is no Python."
    return (signature and signature.replace("<factory>", "..."), returns)


def setup(app):
    SearchEnglish.stem = cache(SearchEnglish.stem)  # of a word that comes a hundred times it is found once
    app.connect("autodoc-process-signature", readable_signature)
    app.add_role("chapter", ChapterRole())
    return {"parallel_read_safe": True}
