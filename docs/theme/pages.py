"""A hook of mkdocs: the root's Markdown files become pages, and links work on GitHub and in the site.

Every link is written relative to its file in the repository. A link to a page of the site is
rewritten, one to another file of the repository (a config, a script) becomes plain text, and
one to a file that does not exist is left as it is, so that the strict build reports it.
"""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = ("README", "ARCHITECTURE", "DECISIONS", "CONTRIBUTING", "SECURITY", "CHANGELOG")
SOURCES = {f"{name.lower()}.md": ROOT / f"{name}.md" for name in ROOT_PAGES}

_LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")  # the text of an image, too
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's Markdown files to the pages of `docs/`."""
    for name, source in SOURCES.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page, outside of code blocks."""
    source = SOURCES.get(page.file.src_uri, Path(config.docs_dir) / page.file.src_uri)
    pages = {Path(config.docs_dir) / file.src_uri: file.src_uri for file in files}
    pages |= {path: name for name, path in SOURCES.items()}
    folder = os.path.dirname(page.file.src_uri) or "."

    def rewrite(match: "re.Match[str]") -> str:
        text, target = match.groups()
        place, hash_, anchor = target.partition("#")
        if not place or "://" in place or place.startswith("mailto:"):
            return match.group()
        path = Path(os.path.normpath(source.parent / place))
        if path in pages:
            return f"[{text}]({os.path.relpath(pages[path], folder)}{hash_}{anchor})"
        return text if path.is_relative_to(ROOT) and path.exists() else match.group()

    blocks = re.split(r"(^ {0,3}```.*?^ {0,3}```[ ]*$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(b if _FENCE.match(b) else _LINK.sub(rewrite, b) for b in blocks)
