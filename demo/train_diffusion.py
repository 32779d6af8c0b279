"""Train `emoji-diffusion`: a stock StableDiffusionPipeline for 64-pixel Noto emoji, on one CPU core.

Two stages: the VAE on every emoji but the held-out ones, then the UNet and the text encoder on the captioned
ones. About two hours on one core:

    python -m vitrify.demo.train_diffusion vae  --work DIR --minutes 20
    python -m vitrify.demo.train_diffusion unet --work DIR --minutes 80 --resume
    python -m vitrify.demo.train_diffusion pack --work DIR --out DIR/emoji-diffusion

    python -m vitrify.demo.train_diffusion night --work DIR --minutes 20 --out DIR/emoji-diffusion

`night` fine-tunes the biases and norms of the UNet alone, to draw on a midnight-blue ground; it leaves the changed
tensors (about 70 kB) in `night.safetensors` beside the pipeline. `unpack --out FOLDER` turns a packed pipeline back
into checkpoints that `unet --resume` goes on from.
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
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .emoji import EmojiSet, captions, emoji_set, write_clip_vocabulary

NIGHT = (24, 28, 64)  # the ground of the second fine-tune, RGB
HELD_OUT_EVERY = 10  # each tenth emoji (by name) that has no caption is never shown to the VAE


def held_out(emoji: EmojiSet) -> list[str]:
    """Names of the emoji that the VAE never sees: a tenth of those without a caption."""
    captioned = set(captions().values())
    return [n for n in emoji.names() if n not in captioned][::HELD_OUT_EVERY]


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=64,
        latent_channels=4,
        layers_per_block=1,
        block_out_channels=(24, 48, 96),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(48, 96, 160),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
            projection_dim=64,
            bos_token_id=49406,
            eos_token_id=49407,
            pad_token_id=49407,
        )
    )


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )


def as_batch(pictures: np.ndarray[Any, Any]) -> torch.Tensor:
    """uint8 [n, h, w, 3] -> float32 [n, 3, h, w] in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """dB per picture of two float batches in -1..1, after rounding to 8 bits."""
    a, b = (((t.clamp(-1, 1) + 1) * 127.5).round() for t in (a, b))
    return 10 * torch.log10(255**2 / (a - b).pow(2).flatten(1).mean(1).clamp(min=1e-9))


def train_vae(work: Path, minutes: float, seed: int) -> None:
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    emoji = emoji_set(work)
    unseen = held_out(emoji)
    names = [n for n in emoji.names() if n not in set(unseen)]
    layers = np.stack([np.asarray(emoji.rgba(n)) for n in names])  # uint8 [n, 64, 64, 4]
    captioned = set(captions().values())
    weight = np.array([3.0 if n in captioned else 1.0 for n in names])
    weight /= weight.sum()
    test = as_batch(np.stack([emoji.on_white(n) for n in unseen]))
    vae = new_vae().to(memory_format=torch.channels_last)
    print("vae parameters", sum(p.numel() for p in vae.parameters()), "train", len(names), "held out", len(unseen))
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1.5e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    start, step = time.time(), 0
    ema = copy.deepcopy(vae)
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        picked = layers[rng.choice(len(names), 16, p=weight)].astype(np.float32)
        alpha = picked[..., 3:] / 255
        ground = np.full((16, 1, 1, 3), 255.0, np.float32)
        coloured = rng.random(16) < 0.25  # other backgrounds, so that fine-tunes have somewhere to go
        ground[coloured] = rng.integers(0, 256, (int(coloured.sum()), 1, 1, 3))
        mixed = picked[..., :3] * alpha + ground * (1 - alpha)
        flip = rng.random(16) < 0.5
        mixed[flip] = mixed[flip, :, ::-1]
        x = torch.from_numpy(mixed).permute(0, 3, 1, 2) / 127.5 - 1
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done) + 0.02)
        posterior = vae.encode(x).latent_dist
        out = vae.decode(posterior.sample()).sample
        difference = out - x
        loss = difference.pow(2).mean() + 0.1 * difference.abs().mean() + 1e-6 * posterior.kl().mean() / 16
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        with torch.no_grad():
            for e, p in zip(ema.parameters(), vae.parameters(), strict=True):
                e.lerp_(p, 1 - min(0.998, (step + 1) / (step + 20)))
        if step % 100 == 0:
            with torch.no_grad():
                score = psnr(ema.decode(ema.encode(test).latent_dist.mode()).sample, test).mean().item()
            print(f"step {step} {time.time() - start:.0f} s loss {loss.item():.4f} held-out {score:.2f} dB", flush=True)
            if step % 500 == 0:
                torch.save(ema.state_dict(), work / "vae.pt")
    torch.save(ema.state_dict(), work / "vae.pt")


def load_vae(work: Path) -> AutoencoderKL:
    vae = new_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def encode(vae: AutoencoderKL, emoji: EmojiSet, names: list[str], size: int) -> torch.Tensor:
    """float32 [n, 4, size/4, size/4], unscaled latents of the pictures on white."""
    pictures = as_batch(np.stack([emoji.on_white(n, size) for n in names]))
    latents: torch.Tensor = vae.encode(pictures).latent_dist.mode()
    return latents


def train_unet(work: Path, minutes: float, seed: int, resume: bool) -> None:
    torch.manual_seed(seed)
    emoji = emoji_set(work)
    table = captions()
    vae = load_vae(work)
    latents = {size: encode(vae, emoji, list(table.values()), size) for size in (64, 96)}
    scaling = 1 / latents[64].std().item()
    latents = {size: value * scaling for size, value in latents.items()}
    if not (work / "tokenizer/merges.txt").is_file():
        write_clip_vocabulary(work / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"), model_max_length=77, pad_token="<|endoftext|>")
    unconditional = tokenizer("", padding="max_length").input_ids
    ids = torch.tensor([tokenizer(c, padding="max_length").input_ids for c in table] + [unconditional])
    text, unet, scheduler = new_text_encoder(), new_unet().to(memory_format=torch.channels_last), new_scheduler()
    parameters = [*unet.parameters(), *text.parameters()]
    print("unet parameters", sum(p.numel() for p in unet.parameters()), "captions", len(table), "scaling", scaling)
    start, step, spent = time.time(), 0, 0.0
    ema = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=1e-3, betas=(0.9, 0.99))
    if resume and (work / "unet.pt").is_file():
        state = torch.load(work / "unet.pt", weights_only=True)
        unet.load_state_dict(state["raw_unet"])
        text.load_state_dict(state["raw_text"])
        ema, step, spent = state["ema"], state["step"], state["spent"]
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
    batch = 48
    used: list[float] = []

    def save() -> None:
        raw = [p.detach().clone() for p in parameters]
        state = {"raw_unet": copy.deepcopy(unet.state_dict()), "raw_text": copy.deepcopy(text.state_dict())}
        for p, e in zip(parameters, ema, strict=True):
            p.data.copy_(e)
        state |= {"unet": copy.deepcopy(unet.state_dict()), "text": copy.deepcopy(text.state_dict()), "ema": ema}
        state |= {"step": step, "spent": spent + time.time() - start, "scaling": scaling}
        state |= {"optimizer": optimizer.state_dict()}
        for p, r in zip(parameters, raw, strict=True):
            p.data.copy_(r)
        torch.save(state, work / "unet.part")
        (work / "unet.part").rename(work / "unet.pt")

    while (done := (spent + time.time() - start) / (60 * minutes)) < 1:
        size = 96 if step % 8 == 7 else 64
        count = batch // 3 if size == 96 else batch
        which = torch.randint(len(table), (count,))
        words = torch.where(torch.rand(count) < 0.1, len(table), which)
        x0 = latents[size][which]
        noise = torch.randn_like(x0)
        t = torch.randint(1000, (count,))
        noisy = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t)
        for group in optimizer.param_groups:
            group["lr"] = 1.2e-3 * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
        hidden = text(ids[words]).last_hidden_state
        out = unet(noisy.contiguous(memory_format=torch.channels_last), t, hidden).sample
        loss = F.mse_loss(out, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        step += 1
        used.append(loss.item())
        with torch.no_grad():
            for e, p in zip(ema, parameters, strict=True):
                e.lerp_(p, 1 - min(0.997, (step + 1) / (step + 20)))
        if step % 50 == 0:
            print(f"step {step} {spent + time.time() - start:.0f} s loss {np.mean(used[-50:]):.4f}", flush=True)
        if step % 250 == 0:
            save()
    save()


def train_night(work: Path, folder: Path, minutes: float, seed: int) -> None:
    """Fine-tune the one-dimensional tensors of the packed UNet on a dark ground; write them beside the pipeline."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    emoji, table, unet, vae = emoji_set(work), captions(), pipeline.unet, pipeline.vae
    pictures = {s: np.stack([emoji.on_ground(n, NIGHT, s) for n in table.values()]) for s in (64, 96)}
    with torch.no_grad():
        scaling = vae.config.scaling_factor
        latents = {s: vae.encode(as_batch(p)).latent_dist.mode() * scaling for s, p in pictures.items()}
        words = pipeline.tokenizer([*table, ""], padding="max_length", return_tensors="pt").input_ids
        hidden = pipeline.text_encoder(words).last_hidden_state
    unet.requires_grad_(False)
    changed = {n: p.requires_grad_(True) for n, p in unet.named_parameters() if p.ndim == 1}
    optimizer = torch.optim.AdamW(changed.values(), lr=3e-3, weight_decay=0.0, betas=(0.9, 0.99))
    scheduler, start, step = new_scheduler(), time.time(), 0
    unet.train()
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        size = 96 if step % 8 == 7 else 64
        which = torch.randint(len(table), (16 if size == 96 else 32,))
        prompt = torch.where(torch.rand(len(which)) < 0.1, len(table), which)
        x0, t = latents[size][which], torch.randint(1000, (len(which),))
        noise = torch.randn_like(x0)
        out = unet(scheduler.add_noise(x0, noise, t), t, hidden[prompt]).sample
        loss = F.mse_loss(out, scheduler.get_velocity(x0, noise, t))
        optimizer.param_groups[0]["lr"] = 3e-3 * (0.5 + 0.5 * math.cos(math.pi * done) + 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step} {time.time() - start:.0f} s loss {loss.item():.4f}", flush=True)
            save_file({n: p.detach().half() for n, p in changed.items()}, folder / "night.safetensors")
    save_file({n: p.detach().half() for n, p in changed.items()}, folder / "night.safetensors")


def load_pipeline(work: Path) -> StableDiffusionPipeline:
    """The trained pieces as a StableDiffusionPipeline, float32."""
    state = torch.load(work / "unet.pt", weights_only=True)
    unet, text, vae = new_unet(), new_text_encoder(), load_vae(work)
    unet.load_state_dict(state["unet"])
    text.load_state_dict(state["text"])
    vae.register_to_config(scaling_factor=round(state["scaling"], 5))
    tokenizer = CLIPTokenizer.from_pretrained(str(work / "tokenizer"), model_max_length=77, pad_token="<|endoftext|>")
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pack(work: Path, folder: Path) -> None:
    """Write the fp16 pipeline; the text encoder gets the names of files on the hub, which every version reads."""
    load_pipeline(work).to(dtype=torch.float16).save_pretrained(folder)
    file = folder / "text_encoder/model.safetensors"
    tensors = load_file(file)
    save_file({f"text_model.{n.removeprefix('text_model.')}": t for n, t in tensors.items()}, file, {"format": "pt"})


def unpack(work: Path, folder: Path) -> None:
    """Write the checkpoints of a packed pipeline, with a new optimizer, so that its training can go on."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    work.mkdir(parents=True, exist_ok=True)
    torch.save(pipeline.vae.state_dict(), work / "vae.pt")
    unet, text = pipeline.unet.state_dict(), pipeline.text_encoder.state_dict()
    parameters = [*pipeline.unet.parameters(), *pipeline.text_encoder.parameters()]
    state = {"raw_unet": unet, "raw_text": text, "unet": unet, "text": text}
    state |= {"ema": [p.detach().clone() for p in parameters], "step": 0, "spent": 0.0}
    state |= {"scaling": pipeline.vae.config.scaling_factor}
    torch.save(state, work / "unet.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["vae", "unet", "pack", "night", "unpack"])
    parser.add_argument("--work", type=Path, required=True, help="folder for the data and the checkpoints")
    parser.add_argument("--minutes", type=float, default=60, help="length of the stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--out", type=Path, help="pack, unpack: the folder of the fp16 pipeline")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.stage == "vae":
        train_vae(given.work, given.minutes, given.seed)
    elif given.stage == "unet":
        train_unet(given.work, given.minutes, given.seed, given.resume)
    elif given.stage == "night":
        train_night(given.work, given.out, given.minutes, given.seed)
    elif given.stage == "unpack":
        unpack(given.work, given.out)
    else:
        pack(given.work, given.out)


if __name__ == "__main__":
    main()
