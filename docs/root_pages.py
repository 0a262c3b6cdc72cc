"""Brings the pages at the repository's root into the site, README as its first page: mkdocs.yml."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
OTHERS = ("LICENSE", "params.yaml", "CITATION.cff", "notebooks/answer.ipynb")  # pages link to them


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of docs/, and those of the root under their own names."""
    for name in (*PAGES, *OTHERS):
        target = "index.md" if name == "README.md" else name
        files.append(File.generated(config, target, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """A page whose links lead to the same things in the site, where docs/ is the root."""
    if page.file.src_uri in ("index.md", *PAGES):
        markdown = re.sub(r"(\]\(|src=\")docs/", r"\1", markdown)
    markdown = re.sub(r"\]\((\.\./)?README\.md", "](index.md", markdown)
    return re.sub(r"\]\(\.\./(?!\.)", "](", markdown)
