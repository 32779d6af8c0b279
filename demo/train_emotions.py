"""Train `emoji-emotions`: a small ViT that reads the seven expressions from Noto emoji faces, on one CPU core.

About half an hour on one core:

    python -m vitrify.demo.train_emotions --work DIR --out DIR/emoji-emotions --minutes 25

The glyphs under `UNSEEN` are never trained on; evaluation reports them apart.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from transformers import ViTConfig, ViTForImageClassification

from .emoji import EmojiSet, emoji_set

LABELS = ("sad", "disgust", "angry", "neutral", "fear", "surprise", "happy")

GLYPHS = {
    "sad": ("disappointed", "pensive", "frowning", "slightly_frowning_face", "cry", "sob", "worried"),
    "disgust": ("nauseated_face", "face_vomiting", "woozy_face"),
    "angry": ("rage", "angry", "face_with_symbols_on_mouth", "pouting_cat"),
    "neutral": ("neutral_face", "expressionless", "no_mouth", "face_with_raised_eyebrow"),
    "fear": ("fearful", "scream", "cold_sweat", "scream_cat"),
    "surprise": ("open_mouth", "astonished", "flushed", "exploding_head"),
    "happy": ("smiley", "smile", "grin", "blush", "slightly_smiling_face", "laughing", "smile_cat"),
}

UNSEEN = {
    "sad": ("white_frowning_face", "crying_cat_face"),
    "disgust": ("sneezing_face",),
    "angry": ("triumph",),
    "neutral": ("unamused", "face_with_diagonal_mouth"),
    "fear": ("anguished",),
    "surprise": ("hushed",),
    "happy": ("grinning", "relaxed", "smiley_cat"),
}


def augmented(face: Image.Image, rng: np.random.Generator, size: int = 224) -> Image.Image:
    """One random view, RGB [size, size]: place, scale, turn, mirror, background, colour, blur, low resolution."""
    ground_colour = (255, 255, 255) if rng.random() < 0.4 else tuple(int(v) for v in rng.integers(0, 256, 3))
    ground = Image.new("RGBA", (size, size), (*ground_colour, 255))
    side = int(size * rng.uniform(0.6, 1.0))
    face = face.resize((side, side), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    face = face.rotate(float(rng.uniform(-15, 15)), Image.Resampling.BICUBIC)
    slack = size - side
    low, high = min(0, slack), max(0, slack)
    place = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
    layer = Image.new("RGBA", (size, size), (0, 0, 0, 0))
    layer.paste(face, place)
    ground.alpha_composite(layer)
    out = ground.convert("RGB")
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        out = enhance(out).enhance(float(rng.uniform(0.8, 1.2)))
    if rng.random() < 0.5:
        small = int(rng.integers(56, 120))
        out = out.resize((small, small), Image.Resampling.BILINEAR).resize((size, size), Image.Resampling.BILINEAR)
    if rng.random() < 0.25:
        out = out.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 2))))
    return out


def as_pixels(pictures: list[Image.Image]) -> torch.Tensor:
    """float32 [n, 3, 224, 224], (x/255 - 0.5) / 0.5."""
    return torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2).float() / 127.5 - 1


def new_model() -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(
            image_size=224,
            patch_size=16,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=6,
            num_attention_heads=4,
            id2label=dict(enumerate(LABELS)),
            label2id={n: i for i, n in enumerate(LABELS)},
        )
    )


def views(emoji: EmojiSet, table: dict[str, tuple[str, ...]], each: int, seed: int) -> tuple[list[Any], list[int]]:
    """`each` augmented views of every glyph in `table`: pictures and label numbers."""
    rng = np.random.default_rng(seed)
    pictures, labels = [], []
    for label, names in table.items():
        for name in names:
            for _ in range(each):
                pictures.append(augmented(emoji.rgba(name), rng))
                labels.append(LABELS.index(label))
    return pictures, labels


def train(work: Path, minutes: float, seed: int, resume: Path | None) -> ViTForImageClassification:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed + 1000)
    emoji = emoji_set(work)
    model = new_model()
    if resume is not None:
        model = ViTForImageClassification.from_pretrained(resume, dtype=torch.float32).train()
    print("parameters", sum(p.numel() for p in model.parameters()))
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-4, weight_decay=0.03, betas=(0.9, 0.99))
    faces = {name: emoji.rgba(name) for names in GLYPHS.values() for name in names}
    test, truth = views(emoji, GLYPHS, 7, seed=77)
    ema = copy.deepcopy(model).eval()
    start, step, smooth = time.time(), 0, 2.0
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        labels = rng.integers(0, len(LABELS), 28)
        names = [GLYPHS[LABELS[i]][int(rng.integers(len(GLYPHS[LABELS[i]])))] for i in labels]
        pixels = as_pixels([augmented(faces[n], rng) for n in names])
        for group in optimizer.param_groups:
            group["lr"] = 8e-4 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
        loss = F.cross_entropy(model(pixels).logits, torch.from_numpy(labels), label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        smooth += 0.03 * (loss.item() - smooth)
        with torch.no_grad():
            for e, p in zip(ema.parameters(), model.parameters(), strict=True):
                e.lerp_(p, 1 - min(0.99, (step + 1) / (step + 20)))
        if step % 100 == 0:
            with torch.no_grad():
                guess = torch.cat([ema(as_pixels(test[i : i + 33])).logits for i in range(0, len(test), 33)])
            right = (guess.argmax(1) == torch.tensor(truth)).float().mean().item()
            print(f"step {step} {time.time() - start:.0f} s loss {smooth:.3f} held-out {right:.3f}", flush=True)
    return ema


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the data")
    parser.add_argument("--out", type=Path, required=True, help="where the fp16 model goes")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", type=Path, help="start from the weights in this folder")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = train(given.work, given.minutes, given.seed, given.resume)
    model.to(torch.float16).save_pretrained(given.out)
    settings = '"size": {"height": 224, "width": 224}, "resample": 2, "rescale_factor": 0.00392156862745098'
    (given.out / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": true, "do_rescale": true, '
        f'"do_normalize": true, {settings}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}}\n'
    )


if __name__ == "__main__":
    main()
