"""What a sweep leaves in its folder: the grids, sweep.csv and sweep.json, and how a second run reads them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from ...core.errors import BadInput, VitrifyError
from ...core.publish import disk_errors, write_whole
from ...pipelines.adapters import parse_lora
from ..saved import SAVED, said
from .axes import LETTERS, Axis, label, sets
from .grid import Block, Legend, Tile, draw_grid
from .plan import Cell, Settings

SCHEMA = 1
DOCUMENT, TABLE, GRID = "sweep.json", "sweep.csv", "grid.png"
PICTURES, ARTIFACTS = "pictures", "artifacts"
SAME = ("recipe", "runtime", "threads", *SAVED)
"""Axes along which pictures are meant to stay the same, and seconds are not."""

Json = dict[str, Any]


@dataclass
class Row:
    """What became of a cell.

    settings: with the artifact's own where the cell names none; a picture's own size once it is drawn.
    state: drawn, reused, failed, or missing: not reached.
    file: below the sweep's folder. seconds: encode, steps (all), step (their median), decode, total. first: whether it
    was the first of its size after the artifact was opened, or opened again for another LoRA, with what the runtime
    prepares then in its seconds.
    against: axis letter -> {"file", "psnr_db" (None where they are the same), "ssim" (None below 11 pixels), "same"}
    of the picture at the axis's first value, where that is another one of the same size.
    """

    cell: Cell
    settings: Settings
    state: str = "missing"
    file: str | None = None
    artifact: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    placement: str = ""
    first: bool = False
    against: dict[str, Json] = field(default_factory=dict)
    error: VitrifyError | None = None

    def to_json(self, axes: Sequence[Axis]) -> Json:
        values = {axis.letter: _plain(axis, self.cell.index[LETTERS.index(axis.letter)]) for axis in axes}
        error = None
        if self.error is not None:
            error = {"code": self.error.code, "what": self.error.what, "fix": self.error.fix}
        return {
            "values": values,
            "state": self.state,
            "file": self.file,
            "parameters": self.settings.to_json(),
            "artifact": self.artifact,
            "seconds": self.seconds,
            "placement": self.placement,
            "first": self.first,
            "against": self.against,
            "error": error,
        }


@dataclass(frozen=True)
class Sweep:
    """A sweep's rows, in the order z, y, x. facts: what the document says besides them."""

    folder: Path
    axes: Sequence[Axis]
    base: Settings
    rows: Sequence[Row]
    facts: Json

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    def to_json(self, status: str, grids: Sequence[str]) -> Json:
        return {
            "schema": SCHEMA,
            "kind": "sweep",
            "status": status,
            **self.facts,
            "axes": [
                asdict(axis) | {"values": [_plain(axis, n) for n in range(len(axis.values))]} for axis in self.axes
            ],
            "settings": self.base.to_json(),
            "grids": list(grids),
            "table": TABLE,
            "counts": {state: self.count(state) for state in ("drawn", "reused", "failed", "missing")},
            "pictures": [row.to_json(self.axes) for row in self.rows if row.state != "missing"],
        }

    def write(self, status: str, earlier: Mapping[str, Any]) -> Json:
        """Grids, table and document, each whole or not at all; grids of an earlier run that are no more are removed.

        Returns:
            The document.

        Raises:
            DiskError: the disk is full or read-only.
        """
        with disk_errors(self.folder):
            grids = []
            for name, blocks in self._grids().items():
                packed = BytesIO()
                draw_grid(blocks, self._legend(), self._largest()).save(packed, "PNG")
                write_whole(self.folder / name, packed.getvalue())
                grids.append(name)
            write_whole(self.folder / TABLE, self._table().encode("utf-8", "replace"))
            document = self.to_json(status, grids)
            write_document(self.folder, document)
            for name in earlier.get("grids", []):
                if re.fullmatch(r"grid[\w.-]*\.png", str(name)) and name not in grids:
                    (self.folder / name).unlink(missing_ok=True)
        return document

    def axis(self, letter: str) -> Axis | None:
        return next((axis for axis in self.axes if axis.letter == letter), None)

    def _labels(self, letter: str) -> list[str]:
        axis = self.axis(letter)
        return [axis.label(n) for n in range(len(axis.values))] if axis else [""]

    def _grids(self) -> dict[str, list[Block]]:
        """File name -> what it shows: all of it, and where there is a z axis a grid for each of its values."""
        labels = self._labels("z")
        axis = self.axis("z")
        at = {row.cell.index: row for row in self.rows}
        blocks = [
            Block(
                f"{axis.heading}: {label}" if axis and axis.heading else label,
                [
                    [self._tile(at[x, y, z]) for x in range(len(self._labels("x")))]
                    for y in range(len(self._labels("y")))
                ],
            )
            for z, label in enumerate(labels)
        ]
        alone = {}
        if len(blocks) > 1:
            for number, (label, block) in enumerate(zip(labels, blocks, strict=True), 1):
                words = re.sub(r"[^a-z0-9.]+", "-", label.lower())[:40].strip("-.")
                alone["-".join(filter(None, ("grid", str(number), words))) + ".png"] = [block]
        return {GRID: blocks, **alone}

    def _tile(self, row: Row) -> Tile:
        if row.error is not None:
            return Tile(error=row.error.what)
        if row.file is None:
            return Tile()
        caption = f"{row.seconds['total']:.2f} s" + " (first)" * row.first
        other = row.against.get(self._reference() or "")
        if other is not None:
            caption += ", same" if other["same"] else f", {other['psnr_db']:.1f} dB"
        return Tile(self.folder / row.file, caption)

    def _reference(self) -> str | None:
        """The axis whose first value a caption's PSNR is beside."""
        found = [axis for name in SAME for axis in self.axes if axis.name == name]
        return found[0].letter if found else None

    def _legend(self) -> Legend:
        varied = {name for axis in self.axes for name in sets(axis.name)}
        own = self.rows[0].settings
        words = [] if "negative_prompt" in varied or not own.negative_prompt else [f"without {own.negative_prompt}"]
        words += [label(name, getattr(own, name)) for name in ("steps", "guidance", "seed") if name not in varied]
        words += [own.scheduler] if own.scheduler and "scheduler" not in varied else []
        words += [] if {"width", "height"} & varied else [f"{own.width}x{own.height}"]
        words += [str(getattr(own, name)) for name in ("recipe", "runtime") if name not in varied]
        words += said({name: value for name, value in own.saved.items() if name not in varied})
        words += _started_from(own, varied)
        model = str(self.facts["model"])
        head = [model, ", ".join(words)] if "prompt" in varied else [self.base.prompt, ", ".join([model, *words])]
        foot = "s: seconds of the whole picture."
        letter = self._reference()
        axis = self.axis(letter) if letter else None
        if axis is not None and len(axis.values) > 1:
            foot += f" dB: PSNR beside {axis.label(0)}."
        if any(row.first for row in self.rows):
            foot += " first: of its size after the artifact was opened, with what the runtime prepares then."
        names = {axis.letter: axis.heading for axis in self.axes}
        return Legend(
            self._labels("x"), self._labels("y"), names.get("x", ""), names.get("y", ""),
            head, [foot],
        )  # fmt: skip

    def _largest(self) -> tuple[int, int]:
        """Width and height that hold every picture that was drawn."""
        sizes = []
        for row in self.rows:
            if row.file is not None:
                with Image.open(self.folder / row.file) as picture:
                    sizes.append(picture.size)
        return (max(w for w, _ in sizes), max(h for _, h in sizes)) if sizes else (256, 256)

    def _table(self) -> str:
        """One line a picture; those that were not reached are left out."""
        out = StringIO(newline="")
        table: csv.DictWriter[str] | None = None
        for row in self.rows:
            if row.state == "missing":
                continue
            values = row.to_json(self.axes)["values"]
            line = {f"{axis.letter}_{axis.name}": values[axis.letter] for axis in self.axes}
            line |= row.settings.to_json() | {"lora": " ".join(row.settings.lora)}
            line |= {"artifact": row.artifact, "device": self.facts["device"]}
            line |= {"options": " ".join(f"{k}={v}" for k, v in self.facts["options"].items())}
            line |= {f"{name}_s": row.seconds.get(name) for name in ("encode", "steps", "step", "decode", "total")}
            line |= {"first": "yes" if row.first else "no", "placement": row.placement}
            for axis in self.axes:
                found = row.against.get(axis.letter, {})
                line[f"psnr_{axis.letter}_db"] = "inf" if found.get("same") else found.get("psnr_db")
                line[f"ssim_{axis.letter}"] = found.get("ssim")
            line |= {"state": row.state, "file": row.file, "error": row.error.what if row.error else None}
            if table is None:
                table = csv.DictWriter(out, list(line), lineterminator="\n")
                table.writeheader()
            table.writerow(line)
        return out.getvalue()


def read_earlier(folder: Path) -> Json:
    """The document of an earlier run in this folder; empty where the folder is new or empty.

    Raises:
        BadInput: it is a file, or holds something else than a sweep.
    """
    choose = "Choose another folder with -o."
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise BadInput(f"{folder} is a file, not a folder.", choose)
    with disk_errors(folder):
        there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if not there:
        return {}
    if DOCUMENT not in there:
        raise BadInput(f"{folder} holds something else than a sweep: {there[0]}.", choose)
    try:
        found = json.loads((folder / DOCUMENT).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as exc:
        raise BadInput(f"{folder / DOCUMENT} cannot be read: {exc}.", f"Remove it. {choose}") from exc
    if not isinstance(found, dict) or found.get("kind") != "sweep" or found.get("schema") != SCHEMA:
        raise BadInput(f"{folder / DOCUMENT} is not of a sweep that this version wrote.", choose)
    return found


def write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """sweep.json, whole or not at all."""
    write_whole(folder / DOCUMENT, json.dumps(document, indent=1, default=str) + "\n")


def _started_from(own: Settings, varied: Collection[str]) -> list[str]:
    """What a legend says of pictures and LoRAs that all pictures have in common."""
    words = []
    if own.image is not None and "image" not in varied:
        words.append(f"from {label('image', own.image)}")
    for name in ("strength", "control_strength"):
        if getattr(own, name) is not None and name not in varied:
            words.append(label(name, getattr(own, name)))
    if "lora" not in varied:
        texts = [parse_lora(text)[0] for text in own.lora] if "lora_strength" in varied else own.lora
        words += [f"lora {label('lora', text)}" for text in texts]
    return words


def _plain(axis: Axis, number: int) -> Any:
    """A value of an axis, as a table holds it."""
    return axis.label(number) if axis.name == "size" else axis.values[number]
