"""What `demo.quality` leaves for people: a sheet of pictures, and tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .quality import Drawn

PAINTER, READER = "emoji-diffusion", "emoji-emotions"
_SIDE, _LABEL, _LINE, _GAP = 96, 150, 15, 4  # pixels of the sheet


def contact_sheet(names: Sequence[str], drawn: Mapping[str, Drawn]) -> Image.Image:
    """Rows: captions; columns: cells. A red line beneath a picture: another caption's training picture is nearer."""
    step = _SIDE + _GAP
    heads = [re.sub("[:,]", "\n", cell) for cell in drawn]
    under = _GAP + _LINE * max(head.count("\n") + 1 for head in heads)
    sheet = Image.new("RGB", (_LABEL + step * len(drawn), under + step * len(names)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for row, name in enumerate(names):
        pen.text((_GAP, under + row * step + _SIDE // 2 - _LINE // 2), name, fill="black", font=font)
    for column, (head, pictures) in enumerate(zip(heads, drawn.values(), strict=True)):
        left = _LABEL + column * step
        pen.multiline_text((left, 2), head, fill="black", font=font, spacing=1)
        for row, (picture, right) in enumerate(zip(pictures.captions, pictures.right, strict=True)):
            top = under + row * step
            sheet.paste(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), (left, top))
            if not right:
                pen.rectangle((left, top + _SIDE, left + _SIDE - 1, top + _SIDE + 2), fill="red")
    return sheet


# column -> (key, format)
_COLUMNS = {
    PAINTER: {
        "PSNR, mean dB": ("psnr_db", ".1f"), "median": ("median_psnr_db", ".1f"), "worst": ("min_psnr_db", ".1f"),
        "SSIM": ("ssim", ".4f"), "captions drawn right": ("captions_right", ".1%"),
        "expressions read right": ("expressions_right", ".1%"), "MB": ("mb", ".1f"),
    },
    READER: {
        "agrees with fp32": ("agreement", ".1%"), "largest change of a score": ("max_score_difference", ".3f"),
        "accuracy": ("accuracy", ".1%"), "MB": ("mb", ".1f"),
    },
}  # fmt: skip
_BESIDE = ("psnr_db", "median_psnr_db", "min_psnr_db", "ssim", "agreement", "max_score_difference")


def to_markdown(results: Mapping[str, Any]) -> str:
    """One table a model, the cells that fail with their reasons, and what it ran on."""
    asked, parts = results["settings"], []
    for model, rows in results["models"].items():
        about = f"{rows[0].get('pictures')} new views of trained glyphs"
        if model == PAINTER:
            about = f"{len(rows[0]['psnr_db_each'])} captions, seven expressions with {asked['seeds']} seeds, "
            about += f"{asked['scheduler']}, {asked['steps']} steps, guidance {asked['guidance']:g}"
        table = [["cell", *_COLUMNS[model], "verdict"], ["---"] * (len(_COLUMNS[model]) + 2)]
        for row in rows:
            # float32 beside itself says nothing
            shown = [k in row and not (row is rows[0] and k in _BESIDE) for k, _ in _COLUMNS[model].values()]
            cells = [format(row[k], f) if s else "" for s, (k, f) in zip(shown, _COLUMNS[model].values(), strict=True)]
            table.append([row["cell"], *cells, row.get("verdict", "")])
        parts.append(f"{model}: {about}.\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in table))
        parts += [f"FAIL {model} {row['cell']}: {'; '.join(row['failed'])}." for row in rows if row.get("failed")]
    machine, versions = results["machine"], results["versions"]
    ran = ", ".join(f"{name} {version}" for name, version in versions.items())
    parts.append(f"{results['date']}. {machine['cpu']}, {machine['usable_cores']} cores, {machine['system']}. {ran}.")
    return "\n\n".join(parts) + "\n"
