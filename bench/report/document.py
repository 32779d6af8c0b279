"""What a report is made of, whatever it is written as: blocks in the order in which they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


class Strong(str):
    """A piece of a sentence that stands out."""


class Code(str):
    """A piece of a sentence that is typed."""


@dataclass(frozen=True)
class Heading:
    """level: 2 of a part, 3 of a model, 4 of what it was asked."""

    level: int
    text: str


@dataclass(frozen=True)
class Paragraph:
    """Pieces of text, joined as they are. kind: "", "answer", "note" or "warning"."""

    pieces: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Column:
    """A column's title, and the one that it shares with its neighbours. Figures stand right, words left.

    alone: the title where none can be shared; empty: `title`.
    """

    title: str
    group: str = ""
    words: bool = False
    alone: str = ""


@dataclass(frozen=True)
class Entry:
    """A table's cell: what it says, its range or remark, and whether it is the column's best."""

    text: str
    detail: str = ""
    best: bool = False


NOTHING = Entry("–")


@dataclass(frozen=True)
class Table:
    """caption: what is shown, without the number that it gets. notes: what stands under it."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plot:
    """A drawing as SVG, for wide and for narrow screens; text: what it shows, for those who cannot see it."""

    name: str
    caption: str
    text: str
    wide: str
    narrow: str


@dataclass(frozen=True)
class Picture:
    """A sample: PNG bytes, or what is wrong with its file. side: the larger one of the file, in pixels."""

    label: str
    detail: str = ""
    png: bytes | None = None
    problem: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures that belong together: the prompt, then the reference's and each artifact's."""

    caption: str
    rows: Sequence[tuple[str, Sequence[Picture]]]


@dataclass(frozen=True)
class Verbatim:
    """What a program printed, or a command."""

    text: str


Block = Heading | Paragraph | Table | Plot | Gallery | Verbatim


@dataclass(frozen=True)
class Document:
    """A report: title, what stands under it, and its blocks."""

    title: str
    subtitle: str
    blocks: Sequence[Block] = field(default_factory=list)
