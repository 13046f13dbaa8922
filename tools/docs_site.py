"""Hooks of `make docs`: pages that lie outside of docs/, and links to files that are no pages."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {  # page: where it lies
    "index.md": "README.md",
    "datasets.md": "datasets/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Links are written for the repository; here they lead to pages, and those to other files lose their address."""
    place = page.file.src_uri
    source = OUTSIDE.get(place, f"docs/{place}")
    of_source = {source: page for page, source in OUTSIDE.items()}

    def change(match: re.Match) -> str:
        mark, text, target, anchor = match.groups(default="")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if path in of_source:
            path = of_source[path]
        elif path.startswith("docs/") and not path.endswith(".ipynb"):
            path = path.removeprefix("docs/")
        else:
            return text if (ROOT / path).exists() else match[0]  # what is lost is left for the check of links
        return f"{mark}[{text}]({posixpath.relpath(path, posixpath.dirname(place) or '.')}{anchor})"

    parts, end = [], 0
    for code in FENCED.finditer(markdown):
        parts += [LINK.sub(change, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, LINK.sub(change, markdown[end:])])
