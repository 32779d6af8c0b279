"""Train a small ControlNet for `emoji-diffusion` that follows edges, on one CPU core, in about half an hour:

    python -m vitrify.demo.train_control train    --work DIR --out DIR/emoji-canny --minutes 30 --resume
    python -m vitrify.demo.train_control evaluate --work DIR --out DIR/emoji-canny
    python -m vitrify.demo.train_control picture  --work DIR --out DIR/emoji-canny --picture control.png

It learns from views of the emoji: mirrored, turned, moved and scaled, so that a caption alone does not say where the
edges are. Two kinds of control pictures are kept apart for `evaluate`: other views of captioned emoji, and emoji that
no part of the pipeline has ever seen, with an empty prompt.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image

from ..pipelines.control_pictures import canny
from .emoji import EmojiSet, captions
from .evaluate import MODELS, training_pictures
from .train_diffusion import as_batch, held_out, new_scheduler

SIDE = 64
VIEWS, OTHER_VIEWS = 14, 2  # of each captioned emoji, and of each other one
HELD = 64  # control pictures of each kind that training never sees
HELD_SEED = 9000
COND_CHANNELS = (16, 32, 64)  # two of its convolutions halve: 64 pixels become 16 latents
BATCH = 16
RATE = 8e-4
DROPPED = 0.3  # share of captions that are left out, so that the edges must be read

Pixels = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Views:
    """Pictures with their edges. pictures, edges: uint8 [n, 64, 64, 3]. caption: its number, or -1."""

    pictures: Pixels
    edges: Pixels
    caption: Pixels


def view(emoji: EmojiSet, name: str, rng: np.random.Generator) -> Pixels:
    """uint8 [64, 64, 3]: an emoji on white, mirrored, turned, scaled and moved at random."""
    layer = emoji.rgba(name).resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(float(rng.uniform(-25, 25)), Image.Resampling.BICUBIC)
    side = round(SIDE * float(rng.uniform(0.55, 1.0)))
    layer = layer.resize((side, side), Image.Resampling.LANCZOS)
    ground = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    ground.alpha_composite(layer, tuple(int(v) for v in rng.integers(0, SIDE - side + 1, 2)))
    return np.asarray(ground.convert("RGB"))


def views_of(emoji: EmojiSet, names: Sequence[str], numbers: Sequence[int], each: int, seed: int) -> Views:
    """`each` views of every name; numbers: of the captions."""
    rng = np.random.default_rng(seed)
    pictures = [view(emoji, name, rng) for name in names for _ in range(each)]
    edges = [np.asarray(canny(Image.fromarray(picture))) for picture in pictures]
    return Views(np.stack(pictures), np.stack(edges), np.repeat(np.asarray(numbers), each))


def training_views(emoji: EmojiSet, seed: int) -> Views:
    """Every captioned emoji, and the others without the held ones."""
    known, unseen = list(captions().values()), set(held_out(emoji))
    others = [n for n in emoji.names() if n not in set(known) and n not in unseen]
    parts = (
        views_of(emoji, known, range(len(known)), VIEWS, seed),
        views_of(emoji, others, [-1] * len(others), OTHER_VIEWS, seed + 1),
    )
    return Views(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("pictures", "edges", "caption")))


def held_views(emoji: EmojiSet) -> dict[str, Views]:
    """The two kinds of control pictures that training never sees, 64 of each."""
    known = list(captions().values())
    step = len(known) / HELD
    chosen = [int(i * step) for i in range(HELD)]
    unseen = held_out(emoji)
    spread = [unseen[int(i * len(unseen) / HELD)] for i in range(HELD)]
    return {
        "captioned emoji, other views": views_of(emoji, [known[i] for i in chosen], chosen, 1, HELD_SEED),
        "emoji never seen, no caption": views_of(emoji, spread, [-1] * HELD, 1, HELD_SEED + 1),
    }


def new_control(unet: Any) -> ControlNetModel:
    """A ControlNet that starts as the UNet's first half, less half of its middle: 3.3 MB in float16 and not 5.4."""
    whole = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=COND_CHANNELS)
    made: ControlNetModel = ControlNetModel.from_config({**whole.config, "mid_block_type": "UNetMidBlock2D"})
    made.load_state_dict({n: t for n, t in whole.state_dict().items() if n in made.state_dict()}, strict=True)
    return made


def load_pipeline() -> StableDiffusionPipeline:
    """The built-in model, float32."""
    pipeline = StableDiffusionPipeline.from_pretrained(MODELS / "emoji-diffusion", torch_dtype=torch.float32)
    pipeline.text_encoder.float()  # transformers alone keeps what the file has
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_control(edges: Pixels) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in 0..1."""
    return torch.from_numpy(edges).permute(0, 3, 1, 2).float() / 255


@torch.no_grad()
def encoded(pipeline: StableDiffusionPipeline, views: Views) -> torch.Tensor:
    """float32 [n, 4, 16, 16]: the scaled latents of the pictures."""
    batches = [as_batch(views.pictures[i : i + 64]) for i in range(0, len(views.pictures), 64)]
    modes = [pipeline.vae.encode(batch).latent_dist.mode() for batch in batches]
    latents: torch.Tensor = torch.cat(modes) * pipeline.vae.config.scaling_factor
    return latents


@torch.no_grad()
def text_states(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    """float32 [captions + 1, 77, 64]: the last row is the empty prompt's."""
    words = pipeline.tokenizer([*captions(), ""], padding="max_length", return_tensors="pt").input_ids
    states: torch.Tensor = pipeline.text_encoder(words).last_hidden_state
    return states


def train(work: Path, out: Path, minutes: float, seed: int, resume: bool) -> None:
    """Train for so many minutes of processor time, those of earlier runs counted; the UNet stays as it is."""
    torch.manual_seed(seed)
    emoji, pipeline, scheduler = training_pictures(work), load_pipeline(), new_scheduler()
    views = training_views(emoji, seed)
    latents, edges, states = encoded(pipeline, views), as_control(views.edges), text_states(pipeline)
    caption = torch.from_numpy(views.caption)
    unet = pipeline.unet.requires_grad_(False)
    control = new_control(unet).train()
    size = sum(p.numel() for p in control.parameters())
    print(f"{size} parameters, {len(latents)} views, edges {edges.mean():.3f} of all pixels", flush=True)
    optimizer = torch.optim.AdamW(control.parameters(), lr=RATE, weight_decay=1e-3, betas=(0.9, 0.99))
    average = {n: p.detach().clone() for n, p in control.named_parameters()}
    step, spent, start = 0, 0.0, time.process_time()
    kept = work / "control.pt"
    if resume and kept.is_file():
        state = torch.load(kept, weights_only=True)
        control.load_state_dict(state["raw"])
        optimizer.load_state_dict(state["optimizer"])
        average, step, spent = state["average"], state["step"], state["spent"]
        torch.manual_seed(seed + step)

    def save() -> None:
        state = {"raw": control.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
        torch.save(state | {"spent": spent + time.process_time() - start}, work / "control.part")
        (work / "control.part").rename(kept)
        write(pipeline, average, out)

    losses: list[tuple[float, float]] = []
    while (done := (spent + time.process_time() - start) / (60 * minutes)) < 1:
        which = torch.randint(len(latents), (BATCH,))
        text = torch.where(torch.rand(BATCH) < DROPPED, -1, caption[which])  # -1 is the empty prompt's row
        x0 = latents[which]
        t = torch.randint(1000, (2, BATCH)).amax(0)  # noise is where it is decided what lies where: more of it
        noise = torch.randn_like(x0)
        noisy = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t)
        down, mid = control(noisy, t, states[text], edges[which], return_dict=False)
        out_sample = unet(
            noisy, t, states[text], down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        loss = F.mse_loss(out_sample, target)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(control.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for name, parameter in control.named_parameters():
                average[name].lerp_(parameter, 1 - min(0.995, (step + 1) / (step + 20)))
            if step % 10 == 1:  # what the UNet does alone, on the same noise
                alone = F.mse_loss(unet(noisy, t, states[text]).sample, target)
                losses.append((loss.item(), alone.item()))
        if step % 100 == 0:
            mean = np.mean(losses[-10:], axis=0)
            seconds = spent + time.process_time() - start
            print(f"step {step} {seconds:.0f} s loss {mean[0]:.4f}, without control {mean[1]:.4f}", flush=True)
        if step % 500 == 0:
            save()
    save()


def write(pipeline: StableDiffusionPipeline, weights: dict[str, torch.Tensor], out: Path) -> None:
    """The averaged weights in float16, as diffusers reads them."""
    made = new_control(pipeline.unet)
    made.load_state_dict(weights, strict=True)
    made.half().save_pretrained(out)


def draw(pipeline: Any, views: Views, seed: int, control: bool, guidance: float = 3.0, steps: int = 20) -> Pixels:
    """uint8 [n, 64, 64, 3]: one picture for each control picture, with it or by its caption alone."""
    words = [*captions(), ""]
    drawn = []
    for first in range(0, len(views.caption), 16):
        numbers = range(first, min(first + 16, len(views.caption)))
        given: dict[str, Any] = {
            "prompt": [words[views.caption[i]] for i in numbers],
            "generator": [torch.Generator().manual_seed(seed + i) for i in numbers],
        }
        if control:
            given["image"] = [Image.fromarray(views.edges[i]) for i in numbers]
        made = pipeline(
            **given, num_inference_steps=steps, guidance_scale=guidance, width=SIDE, height=SIDE, output_type="np"
        ).images
        drawn.append((made * 255).round().astype(np.uint8))
    return np.concatenate(drawn)


def overlap(edges: Pixels, picture: Pixels) -> tuple[float, float]:
    """Recall and F1 of a picture's edges, where a pixel beside an edge counts as one.

    Recall: the share of the control picture's edge pixels that are edges in the picture.
    """
    wanted, found = edges[..., 0] > 127, np.asarray(canny(Image.fromarray(picture)))[..., 0] > 127
    if not wanted.any() or not found.any():
        return 0.0, 0.0
    recall, precision = float(wide(found)[wanted].mean()), float(wide(wanted)[found].mean())
    return recall, 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def wide(mask: Pixels) -> Pixels:
    """The mask with the eight neighbours of each of its pixels."""
    padded = np.pad(mask, 1)
    height, width = mask.shape
    shifted = [padded[row : row + height, column : column + width] for row in range(3) for column in range(3)]
    grown: Pixels = np.any(shifted, axis=0)
    return grown


def pipelines(out: Path) -> tuple[Any, Any]:
    """The built-in model alone, and with the ControlNet; DDIM."""
    alone = load_pipeline()
    alone.scheduler = DDIMScheduler.from_config(alone.scheduler.config)
    net = ControlNetModel.from_pretrained(out, torch_dtype=torch.float32)
    controlled = StableDiffusionControlNetPipeline(
        **alone.components, controlnet=net, requires_safety_checker=False
    )  # fmt: skip
    controlled.set_progress_bar_config(disable=True)
    return alone, controlled


def evaluate(work: Path, out: Path) -> dict[str, Any]:
    """Edge overlap over the held control pictures, with and without control."""
    report: dict[str, Any] = {}
    alone, controlled = pipelines(out)
    for name, views in held_views(training_pictures(work)).items():
        report[name] = {"pictures": len(views.caption)}
        for key, pipeline in (("without control", alone), ("with control", controlled)):
            drawn = draw(pipeline, views, HELD_SEED, control=pipeline is controlled)
            scores = np.array([overlap(e, d) for e, d in zip(views.edges, drawn, strict=True)])
            report[name][key] = {"recall": float(scores[:, 0].mean()), "f1": float(scores[:, 1].mean())}
    return report


def picture(work: Path, out: Path, file: Path, shown: int = 8, zoom: int = 2) -> None:
    """Rows of edges, pictures without control and pictures with it, made larger."""
    alone, controlled = pipelines(out)
    held = held_views(training_pictures(work))["captioned emoji, other views"]
    every = HELD // shown
    views = Views(*(getattr(held, f)[::every][:shown] for f in ("pictures", "edges", "caption")))
    rows = [views.edges, draw(alone, views, HELD_SEED, control=False), draw(controlled, views, HELD_SEED, control=True)]
    sheet = Image.fromarray(np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0))
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST).save(file, optimize=True)
    print("\n".join([*captions()][i] for i in views.caption))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["train", "evaluate", "picture"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the emoji and the checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder of the ControlNet")
    parser.add_argument("--minutes", type=float, default=30, help="of training, processor time; earlier runs counted")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--picture", type=Path, default=Path("control.png"), help="picture: the file")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.work.mkdir(parents=True, exist_ok=True)
    if given.stage == "train":
        train(given.work, given.out, given.minutes, given.seed, given.resume)
    elif given.stage == "evaluate":
        print(json.dumps(evaluate(given.work, given.out), indent=1))
    else:
        picture(given.work, given.out, given.picture)


if __name__ == "__main__":
    main()
