"""A report as Markdown, with its drawings and pictures as files beside it."""

from __future__ import annotations

import hashlib
import html
import re
from itertools import count

from .document import Block, Code, Document, Entry, Gallery, Heading, Paragraph, Picture, Plot, Strong, Table
from .drawing import standalone

FILES = "report-files"


def build_markdown(document: Document) -> tuple[str, dict[str, bytes]]:
    """The text, and the files that it shows: name below `FILES` -> content."""
    files: dict[str, bytes] = {}
    tables, plots = count(1), count(1)
    parts = [f"# {_text(document.title)}", _text(document.subtitle)]
    for block in document.blocks:
        number = 0
        if isinstance(block, Table):
            number = next(tables)
        elif isinstance(block, Plot | Gallery):
            number = next(plots)
        parts.append(_block(block, number, files))
    return "\n\n".join(parts) + "\n", files


def _block(block: Block, number: int, files: dict[str, bytes]) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_text(block.text)}"
        case Paragraph():
            said = "".join(map(_piece, block.pieces)).strip()
            return f"> {said}" if block.kind == "warning" else said
        case Table():
            return _table(block, number)
        case Plot():
            name = f"{block.name}.svg"
            files[name] = standalone(block.wide).encode()
            return f"![{_text(block.text)}]({FILES}/{name})\n\n**Figure {number}.** {_text(block.caption)}"
        case Gallery():
            return f"**Figure {number}.** {_text(block.caption)}\n\n{_gallery(block, files)}"
    # what a program said may hold fences of its own
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", block.text)), default=0))
    return f"{fence}\n{block.text}\n{fence}"


def _text(text: str) -> str:
    """Plain text: no markup, whatever it holds, and on one line."""
    return re.sub(r"([\\`*_\[\]|#~!$])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _piece(text: str) -> str:
    # spaces stay outside of the stars
    said = f"{' ' * text.startswith(' ')}{_text(text)}{' ' * (text.endswith(' ') and bool(text.strip()))}"
    if isinstance(text, Strong):
        return f"**{said.strip()}**" + " " * said.endswith(" ")
    return f"<code>{html.escape(text, quote=False)}</code>" if isinstance(text, Code) else said


def _table(table: Table, number: int) -> str:
    titles = [_text(c.alone or c.title) for c in table.columns]
    lines = [titles, ["---" if c.words else "---:" for c in table.columns]]
    lines += [[_entry(e) for e in row] for row in table.rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = f"\n\n{_text(' '.join(table.notes))}" if table.notes else ""
    return f"**Table {number}.** {_text(table.caption)}\n\n{text}{notes}"


def _entry(entry: Entry) -> str:
    said = _text(entry.text)
    said = f"**{said}**" if entry.best else said
    return f"{said} ({_text(entry.detail)})" if entry.detail else said


def _gallery(gallery: Gallery, files: dict[str, bytes]) -> str:
    labels = list(dict.fromkeys(p.label for _, pictures in gallery.rows for p in pictures))
    lines = [["prompt", *map(_text, labels)], ["---"] * (len(labels) + 1)]
    for prompt, pictures in gallery.rows:
        by_label = {p.label: p for p in pictures}
        lines.append([_text(prompt), *(_picture(by_label.get(label), prompt, files) for label in labels)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _picture(picture: Picture | None, prompt: str, files: dict[str, bytes]) -> str:
    if picture is None:
        return "–"
    if picture.png is None:
        return _text(f"{picture.problem} {picture.detail}")
    name = f"{hashlib.sha256(picture.png).hexdigest()[:16]}.png"
    files[name] = picture.png
    return f"![{_text(prompt)}]({FILES}/{name}) {_text(picture.detail)}".strip()
