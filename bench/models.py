"""Full-size models with random weights, for benches: two Stable Diffusion 1.5 of different weights, and a ViT-B.

And one of little size: a ViT for what stands around a model.

Run as `python -m vitrify.bench.models DIR`. A figure of time, memory or disk needs the sizes of the real layers, not
their training; nothing about quality can be read from these. diffusers and transformers save them, so their files
are laid out as real ones are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..core.publish import published

if TYPE_CHECKING:
    import torch

SD15 = ("sd15-0", "sd15-1")
VIT_B = "vit-b"
NULL = "null"
LABELS = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
TOKENIZER = Path(__file__).parents[1] / "demo" / "models" / "emoji-diffusion" / "tokenizer"

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5: unet, vae and text_encoder config.json
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: dict[str, Any] = {
    "sample_size": 512,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}


def make_sd15(home: Path) -> None:
    """Save `SD15` under `home` (4.3 GB each, float32); those that are there stay."""
    missing = [name for name in SD15 if not (home / name / "model_index.json").is_file()]
    if not missing:
        return
    import diffusers
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(TOKENIZER))
    parts = sd15_modules("meta")
    for part in parts.values():
        part.to_empty(device="cpu")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = diffusers.StableDiffusionPipeline(
        **parts,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for name in missing:
        for number, part in enumerate(parts.values()):
            fill(part, seed=100 * SD15.index(name) + number)
        with published(home / name) as folder:
            pipeline.save_pretrained(str(folder))


def sd15_modules(device: str) -> dict[str, torch.nn.Module]:
    """The three networks of Stable Diffusion 1.5 on a device; on `meta` they take no memory."""
    import diffusers
    import torch
    import transformers

    with torch.device(device):
        return {
            "text_encoder": transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_TEXT)).eval(),
            "unet": diffusers.UNet2DConditionModel(**UNET).eval(),
            "vae": diffusers.AutoencoderKL(**VAE).eval(),
        }


def make_vit_b(home: Path) -> None:
    """Save `VIT_B` under `home` (343 MB, float32), with its image processor; one that is there stays."""
    _make_vit(home / VIT_B, vit_b_module, 224)


def make_null(home: Path) -> None:
    """Save `NULL` under `home`: a ViT of one layer, eight channels and one patch; one that is there stays."""
    _make_vit(home / NULL, null_module, 16)


def _make_vit(place: Path, made: Callable[[str], torch.nn.Module], side: int) -> None:
    if (place / "config.json").is_file():
        return
    from transformers import ViTForImageClassification, ViTImageProcessor

    module = made("meta")
    module.to_empty(device="cpu")
    fill(module, seed=7)
    assert isinstance(module, ViTForImageClassification)
    processor = ViTImageProcessor(
        size={"height": side, "width": side}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    with published(place) as folder:
        module.save_pretrained(str(folder))
        processor.save_pretrained(str(folder))


def vit_b_module(device: str) -> torch.nn.Module:
    """ViT-B/16 at 224x224 with the labels of a facial emotion model."""
    return _vit_module(device)  # ViTConfig's defaults are ViT-B/16's sizes


def null_module(device: str) -> torch.nn.Module:
    """A ViT whose picture is one patch of 16x16."""
    return _vit_module(
        device, image_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )


def _vit_module(device: str, **sizes: int) -> torch.nn.Module:
    import torch
    from transformers import ViTConfig, ViTForImageClassification

    labels = dict(enumerate(LABELS))
    config = ViTConfig(id2label=labels, label2id={name: i for i, name in labels.items()}, **sizes)
    with torch.device(device):
        module: torch.nn.Module = ViTForImageClassification(config).eval()
    return module


def fill(module: torch.nn.Module, seed: int) -> None:
    """Small normal noise for the weights, 1 for the norms' scales, 0 for the biases: activations stay of order 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0.0, 0.02, generator=generator)


def make_picture(path: Path) -> None:
    """A 300x200 PNG with a gradient and a disc: something to classify that is not one flat colour."""
    from PIL import Image, ImageDraw

    picture = Image.linear_gradient("L").resize((300, 200)).convert("RGB")
    ImageDraw.Draw(picture).ellipse((90, 40, 210, 160), fill=(200, 120, 40))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def make_pictures(folder: Path, count: int) -> None:
    """Pictures as `make_picture` draws them, turned so that no two are alike."""
    from PIL import Image

    make_picture(folder / "0.png")
    with Image.open(folder / "0.png") as first:
        for number in range(1, count):
            turned = first.rotate(360 * number / count, fillcolor=(255 * number // count, 128, 64))
            turned.save(folder / f"{number}.png")


MAKERS = {"sd15": make_sd15, "vit-b": make_vit_b, "null": make_null}


def main(arguments: list[str]) -> int:
    if len(arguments) not in (1, 2) or (len(arguments) == 2 and arguments[1] not in MAKERS):
        print(f"usage: python -m vitrify.bench.models DIR [{'|'.join(MAKERS)}]", file=sys.stderr)
        return 2
    if not TOKENIZER.is_dir():
        raise BadInput(f"{TOKENIZER} is missing.", "Install vitrify again: its package holds the demo models.")
    for make in [MAKERS[arguments[1]]] if len(arguments) == 2 else MAKERS.values():
        make(Path(arguments[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
