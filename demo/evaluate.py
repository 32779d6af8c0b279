"""Print the figures of the built-in models: captions drawn, pictures rebuilt, expressions read.

    python -m vitrify.demo.evaluate --work DIR

The pictures come from diffusers and transformers in float32, so the figures describe the models alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import MissingDependency, VitrifyError
from .emoji import EMOJI_PACKAGE, EmojiSet, captions, emoji_set

MODELS = Path(__file__).parent / "models"
HELD_OUT_SEED = 4242  # of the views that the classifier is asked about; training has others


def training_pictures(folder: Path) -> EmojiSet:
    """The emoji that the models were trained on, under `folder`; fetched with npm on the first call.

    Raises:
        MissingDependency: they are not there and npm did not fetch them.
    """
    try:
        return emoji_set(folder)
    except (OSError, subprocess.CalledProcessError, StopIteration) as exc:
        raise MissingDependency(
            f"The training pictures are not under {folder / 'package'}, and npm did not fetch them: {exc}.",
            f"Install npm, or unpack the npm package {EMOJI_PACKAGE} there.",
        ) from exc


def caption_pictures(emoji: EmojiSet) -> np.ndarray[Any, Any]:
    """uint8 [captions, 64, 64, 3]: the training picture of each caption, in the order of `captions()`."""
    return np.stack([emoji.on_white(name) for name in captions().values()])


def nearest_right(
    drawn: np.ndarray[Any, Any], truth: np.ndarray[Any, Any], which: Sequence[int] | None = None
) -> np.ndarray[Any, Any]:
    """bool [n]: picture i of `drawn` is nearer (squared error) to its own of `truth` than to any other.

    Args:
        drawn: uint8 [n, h, w, 3]. truth: uint8 [m, h, w, 3].
        which: the place in `truth` of each drawn picture's own; None: the same as in `drawn`.
    """
    a, b = (x.reshape(len(x), -1).astype(np.float32) for x in (drawn, truth))
    distance = (a * a).sum(1)[:, None] - 2 * a @ b.T + (b * b).sum(1)
    own = np.arange(len(drawn)) if which is None else np.asarray(which)
    found: np.ndarray[Any, Any] = distance.argmin(1) == own
    return found


def held_out_views(emoji: EmojiSet, each: int = 10) -> tuple[list[Image.Image], list[str]]:
    """Pictures that the classifier was not trained on, of glyphs that it was: `each` new views a glyph, and labels."""
    from .train_emotions import GLYPHS, LABELS, views

    pictures, truth = views(emoji, GLYPHS, each, HELD_OUT_SEED)
    return pictures, [LABELS[i] for i in truth]


def captions_drawn(
    folder: Path, emoji: EmojiSet, guidance: float, seeds: int, steps: int, limit: int | None
) -> dict[str, Any]:
    """Draw every caption with DDIM and find its nearest training picture. Missed captions are listed."""
    import torch
    from diffusers import DDIMScheduler

    pipeline = _in_float32(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    table = dict(list(captions().items())[:limit])
    truth = caption_pictures(emoji)
    prompts, hits, missed = list(table), 0, []
    for seed in range(seeds):
        generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(prompts))]
        drawn = []
        for i in range(0, len(prompts), 16):
            part = pipeline(
                prompts[i : i + 16],
                generator=generators[i : i + 16],
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=64,
                height=64,
                output_type="np",
            )
            drawn.append((part.images * 255).round().astype(np.uint8))
        right = nearest_right(np.concatenate(drawn), truth)
        hits += int(right.sum())
        missed += [f"{p} (seed {seed})" for p, r in zip(prompts, right, strict=True) if not r]
    total = len(prompts) * seeds
    return {"captions": len(prompts), "pictures": total, "accuracy": hits / total, "missed": missed}


def _in_float32(folder: Path) -> Any:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.text_encoder.float()  # transformers alone keeps what the file has
    return pipeline


def pictures_rebuilt(folder: Path, emoji: EmojiSet) -> dict[str, Any]:
    """PSNR (dB) of the VAE on emoji that it never saw."""
    import torch

    from .train_diffusion import as_batch, held_out, psnr

    vae = _in_float32(folder).vae
    names = held_out(emoji)
    pictures = as_batch(np.stack([emoji.on_white(n) for n in names]))
    with torch.no_grad():
        scores = psnr(vae.decode(vae.encode(pictures).latent_dist.mode()).sample, pictures)
    return {"held_out": len(names), "psnr_db": float(scores.mean()), "worst_db": float(scores.min())}


def expressions_read(folder: Path, emoji: EmojiSet) -> dict[str, Any]:
    """Accuracy on fresh augmentations of the trained glyphs, and apart on glyphs it never saw."""
    import torch
    from transformers import ViTForImageClassification

    from .train_emotions import GLYPHS, LABELS, UNSEEN, as_pixels, views

    model = ViTForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    report: dict[str, Any] = {}
    for name, table, each in (("held_out_views", GLYPHS, 10), ("unseen_glyphs", UNSEEN, 10)):
        pictures, truth = views(emoji, table, each, HELD_OUT_SEED)
        with torch.no_grad():
            logits = torch.cat([model(as_pixels(pictures[i : i + 32])).logits for i in range(0, len(pictures), 32)])
        right = logits.argmax(1) == torch.tensor(truth)
        by_label = {label: float(right[torch.tensor(truth) == i].float().mean()) for i, label in enumerate(LABELS)}
        glyphs = sum(len(g) for g in table.values())
        report[name] = {
            "glyphs": glyphs,
            "views": len(pictures),
            "accuracy": float(right.float().mean()),
            "by_label": by_label,
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the emoji package")
    parser.add_argument("--diffusion", type=Path, default=MODELS / "emoji-diffusion")
    parser.add_argument("--emotions", type=Path, default=MODELS / "emoji-emotions")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--limit", type=int, help="only the first captions, for a quick look")
    parser.add_argument("--only", choices=["captions", "vae", "expressions"])
    given = parser.parse_args()
    try:
        emoji = training_pictures(given.work)
    except VitrifyError as exc:
        print(f"{exc.what}\n{exc.fix}", file=sys.stderr)
        return exc.exit_code
    from ..runtimes.torch.modules import no_bars, quiet_imports

    report: dict[str, Any] = {}
    with quiet_imports(), no_bars():
        if given.only in (None, "vae"):
            report["vae"] = pictures_rebuilt(given.diffusion, emoji)
        if given.only in (None, "expressions"):
            report["emoji-emotions"] = expressions_read(given.emotions, emoji)
        if given.only in (None, "captions"):
            report["emoji-diffusion"] = captions_drawn(
                given.diffusion, emoji, given.guidance, given.seeds, given.steps, given.limit
            )
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
