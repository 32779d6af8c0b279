"""The picture of inpainting in docs/generate.md: start pictures, masks, and what is drawn where a mask is white.

    python -m vitrify.demo.inpainting ARTIFACT docs/pictures/inpaint.png

ARTIFACT is `emoji-diffusion`, exported.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from ..pipelines.load import load

# what is drawn first, what then, where (left, top, right, bottom) of 64 pixels, and the seed
ROWS = (
    ("a happy face", "an angry face", (8, 32, 56, 63), 3),
    ("a red heart", "a blue heart", (32, 0, 63, 63), 1),
    ("a red apple", "a green apple", (0, 0, 32, 63), 0),
    ("a dog face", "a cat face", (0, 0, 63, 30), 5),
    ("a sad face", "a happy face", (6, 34, 58, 60), 2),
    ("a green apple", "a red apple", (0, 30, 63, 63), 4),
)
SIDE, ZOOM, GAP, STEPS = 64, 2, 4, 25


def sheet(pipeline: Any) -> Image.Image:
    """A column for each of `ROWS`: the start picture, its mask, what was drawn."""
    size = [n * (SIDE * ZOOM + GAP) - GAP for n in (len(ROWS), 3)]
    drawn = Image.new("RGB", (size[0], size[1]), (128, 128, 128))
    for column, (first, then, box, seed) in enumerate(ROWS):
        start = pipeline.generate(first, seed=seed, steps=STEPS, guidance=3.0).images[0]
        mask = Image.new("L", start.size, 0)
        ImageDraw.Draw(mask).rectangle(box, fill=255)
        new = pipeline.generate(then, seed=seed + 20, steps=STEPS, guidance=4.0, image=start, mask=mask).images[0]
        for row, picture in enumerate((start, mask, new)):
            large = picture.convert("RGB").resize((SIDE * ZOOM, SIDE * ZOOM), Image.Resampling.NEAREST)
            drawn.paste(large, (column * (SIDE * ZOOM + GAP), row * (SIDE * ZOOM + GAP)))
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("picture", type=Path)
    given = parser.parse_args()
    sheet(load(given.artifact, "cpu")).save(given.picture, optimize=True)


if __name__ == "__main__":
    main()
