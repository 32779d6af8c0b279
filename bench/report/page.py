"""A report as one page that needs nothing else: no script, no network, drawings and pictures within it."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import count, groupby
from pathlib import Path
from string import Template

from .document import (
    Block,
    Code,
    Column,
    Document,
    Entry,
    Gallery,
    Heading,
    Paragraph,
    Picture,
    Plot,
    Strong,
    Table,
    Verbatim,
)
from .drawing import DARK, LIGHT, prefixed

_TEMPLATE = Path(__file__).with_name("page.html")
_SMALL = 256  # pixels a side, below which pixels shall stay pixels
_FULL = 7  # columns from which a table is as wide as the page


def build_page(document: Document) -> str:
    """The page's text."""
    tables, plots = count(1), count(1)
    content = "\n".join(_block(block, tables, plots) for block in document.blocks)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(document.title),
        subtitle=escape(document.subtitle),
        light=_variables(LIGHT),
        dark=_variables(DARK),
        content=content,
    )


def _variables(colours: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


def _block(block: Block, tables: Iterator[int], plots: Iterator[int]) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Paragraph():
            kind = f' class="{block.kind}"' if block.kind else ""
            return f"<p{kind}>{''.join(map(_piece, block.pieces)).strip()}</p>"
        case Table():
            return _table(block, next(tables))
        case Plot():
            return _plot(block, next(plots))
        case Gallery():
            return _gallery(block, next(plots))
        case Verbatim():
            return f"<pre>{escape(block.text)}</pre>"


def _piece(text: str) -> str:
    said = escape(text)
    if isinstance(text, Strong):
        return f"<strong>{said}</strong>"
    return f"<code>{said}</code>" if isinstance(text, Code) else said


def _table(table: Table, number: int) -> str:
    rows = "".join(f"<tr>{_row(row, table.columns)}</tr>" for row in table.rows)
    notes = f'<p class="notes">{escape(" ".join(table.notes))}</p>' if table.notes else ""
    kind = ' class="full"' if len(table.columns) >= _FULL else ""
    label = escape(f"Table {number}: {table.caption}", quote=True)
    return (
        f'<div class="block"><p class="caption"><span>Table {number}.</span> {escape(table.caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table{kind}>'
        f"{_head(table.columns)}<tbody>{rows}</tbody></table></div>{notes}</div>"
    )


def _head(held: Sequence[Column]) -> str:
    """One row of titles, or two where columns share one; none where no column has a title."""
    if not any(c.title for c in held):
        return ""
    kinds = [' class="w"' if c.words else "" for c in held]
    if not any(c.group for c in held):
        titles = (f'<th scope="col"{k}>{escape(c.title)}</th>' for c, k in zip(held, kinds, strict=True))
        return f"<thead><tr>{''.join(titles)}</tr></thead>"
    over, under = "", ""
    for group, found in groupby(zip(held, kinds, strict=True), key=lambda pair: pair[0].group):
        pairs = list(found)
        if not group:
            over += "".join(f'<th scope="col" rowspan="2"{k}>{escape(c.title)}</th>' for c, k in pairs)
            continue
        over += f'<th class="over" scope="colgroup" colspan="{len(pairs)}">{escape(group)}</th>'
        under += "".join(f'<th scope="col"{k}>{escape(c.title)}</th>' for c, k in pairs)
    return f"<thead><tr>{over}</tr><tr>{under}</tr></thead>"


def _row(row: Sequence[Entry], columns: Sequence[Column]) -> str:
    return "".join(_cell(e, c, first=i == 0) for i, (e, c) in enumerate(zip(row, columns, strict=True)))


def _cell(entry: Entry, column: Column, first: bool) -> str:
    said = f"<b>{escape(entry.text)}</b>" if entry.best else escape(entry.text)
    said += f"<small>{escape(entry.detail)}</small>" if entry.detail else ""
    if first:
        return f'<th scope="row">{said}</th>'
    kind = ' class="w"' if column.words else ""
    return f"<td{kind}>{said}</td>"


def _plot(plot: Plot, number: int) -> str:
    said = escape(plot.text, quote=True)
    drawings = "".join(
        f'<div class="{width}">{_drawing(svg, f"f{number}{width[0]}", said)}</div>'
        for width, svg in (("wide", plot.wide), ("narrow", plot.narrow))
    )
    return f"<figure>{drawings}<figcaption><span>Figure {number}.</span> {escape(plot.caption)}</figcaption></figure>"


def _drawing(svg: str, prefix: str, said: str) -> str:
    """The <svg> as wide as its place."""
    head, rest = prefixed(svg, prefix).split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} role="img" aria-label="{said}">{rest}'


def _gallery(gallery: Gallery, number: int) -> str:
    rows = "".join(
        f'<p class="prompt">{escape(prompt)}</p>'
        f'<div class="row">{"".join(_picture(p, prompt, i == 0) for i, p in enumerate(pictures))}</div>'
        for prompt, pictures in gallery.rows
    )
    caption = f'<p class="caption"><span>Figure {number}.</span> {escape(gallery.caption)}</p>'
    return f'<div class="block">{caption}{rows}</div>'


def _picture(picture: Picture, prompt: str, source: bool) -> str:
    kind = ' class="source"' if source else ""
    said = f"<figcaption><b>{escape(picture.label)}</b>{escape(picture.detail)}</figcaption>"
    if picture.png is None:
        return f'<figure{kind}><div class="gone">{escape(picture.problem)}</div>{said}</figure>'
    small = ' class="small"' if max(picture.width, picture.height) < _SMALL else ""
    uri = "data:image/png;base64," + base64.b64encode(picture.png).decode("ascii")
    alt = escape(f"{prompt}: {picture.label}", quote=True)
    size = f'width="{picture.width}" height="{picture.height}"'
    return f'<figure{kind}><img{small} src="{uri}" {size} alt="{alt}">{said}</figure>'
