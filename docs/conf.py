"""Sphinx: the pages of this folder, in Markdown."""

project = "vintx"
author = "the vintx developers"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]
html_theme = "alabaster"
myst_heading_anchors = 3
