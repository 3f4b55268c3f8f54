"""The documentation as a site: `make docs`."""

from simmim_plugin import __version__

project = 'simmim_plugin'
author = 'the authors of simmim_plugin'
release = version = __version__
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']
exclude_patterns = ['data']
html_theme = 'furo'
html_title = f'simmim_plugin {version}'
myst_heading_anchors = 3
autodoc_member_order = 'bysource'
autodoc_default_options = {'members': True, 'show-inheritance': True}
autodoc_typehints = 'signature'
napoleon_google_docstring = True
