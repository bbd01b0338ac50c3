"""The site: `make site` builds it from docs/, the notebooks, the library's docstrings and results/.

Nothing in it asks the network: MathJax is served from the site, and notebooks are shown with their stored outputs.
"""
import configparser, os, re, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE / "_ext")]
settings = configparser.ConfigParser(interpolation=None)
settings.read(ROOT / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]


def origin() -> str:
    """The https address of the clone's `origin`, if that is on GitHub; else nothing."""
    done = subprocess.run(["git", "remote", "get-url", "origin"], cwd=ROOT, capture_output=True, text=True)
    found = re.match(r"(?:https://|git@)github\.com[:/](.+?)(?:\.git)?/?$", done.stdout.strip())
    return f"https://github.com/{found[1]}" if found else ""


# Where notebooks can be opened (Colab, Binder buttons): $REPOSITORY, settings.ini's git_url, or the clone's origin.
REPOSITORY = os.environ.get("REPOSITORY") or settings.get("git_url") or origin()

project = settings["lib_name"]
author = settings["author"]
copyright = f"{author}. Code: Apache-2.0"
version = release = re.search(r'"(.+)"', (ROOT / "vlp_course/__init__.py").read_text())[1]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax",
              "sphinxcontrib.bibtex", "sphinx_copybutton", "sphinx_design", "notebooks", "computed", "apidocs"]
exclude_patterns = ["_build", "node_modules", "README.md", "**/.ipynb_checkpoints"]
suppress_warnings = ["myst.header"]             # some notebooks step from a title to a third level

nb_execution_mode = "off"
nb_output_stderr = "remove"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "substitution", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "plain"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
python_use_unqualified_type_names = True
maximum_signature_line_length = 72
add_module_names = False
viewcode_line_numbers = True
copybutton_selector = "div.highlight-python pre, div.highlight-ipython3 pre, div.highlight-bash pre"

html_theme = "sphinx_book_theme"
html_title = "vlp_course"
html_static_path = ["_static", "node_modules/mathjax/es5/tex-svg.js"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_sourcelink_suffix = ""
html_copy_source = True
mathjax_path = "tex-svg.js"
html_use_index = html_domain_indices = False
html_favicon = "_static/mark.svg"
html_context = {"default_mode": "auto"}
html_theme_options = {
    "navbar_persistent": [],                    # else there are two search boxes
    "logo": {"image_light": "_static/mark.svg", "image_dark": "_static/mark.svg", "text": "vlp_course",
             "alt_text": "vlp_course: home"},
    "pygments_light_style": "github-light", "pygments_dark_style": "github-dark",
    "show_navbar_depth": 1,
    "show_toc_level": 1,
    "max_navbar_depth": 2,
    "use_fullscreen_button": False,
    "repository_url": REPOSITORY,
    "repository_branch": "main",
    "use_repository_button": bool(REPOSITORY),
    "launch_buttons": {"colab_url": "https://colab.research.google.com", "binderhub_url": "https://mybinder.org",
                       "notebook_interface": "jupyterlab"} if REPOSITORY else {},
}
