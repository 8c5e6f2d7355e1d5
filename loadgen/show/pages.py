"""HTML pages: the templates in data/pages, filled in. Everything that is put in is escaped."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any, Final

import jinja2

_TEMPLATES: Final = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent.parent / "data" / "pages"),
    undefined=jinja2.StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(name: str, title: str, **facts: Any) -> str:
    """A whole document; `facts`: what the template of this name asks for."""
    return _TEMPLATES.get_template(f"{name}.html").render(title=title, **facts)


def embedded(caption: str, path: Path) -> tuple[str, str]:
    """A picture inside a page: its caption and its bytes."""
    return caption, base64.b64encode(path.read_bytes()).decode()
