"""The original layouts of single checkpoints: which parts each has, under which names, and what is not in the file.

A layout is recognized by names and shapes alone. Another one is one row of `LAYOUTS`, with a file of names beside this
one where its denoiser is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from . import configs, schedulers, text, transformer
from .origins import Checkpoint, Origin
from .unet import unet_origins
from .vae import vae_origins

Config = dict[str, Any]

DENOISER = ("model.diffusion_model.", "")
_VAE = ("first_stage_model.", "vae.")
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Part:
    """One component's tensors in a checkpoint.

    folder: of the component in a diffusers model. library, kind: its class there.
    prefixes: what its names may begin with, the first that fits is taken. tells: a name behind the prefix that says it
    is there. origins: its tensors as the module has them. config: its config.json, read off the shapes. known: whether
    these are shapes of a model whose config can be told. optional: models come without it.
    """

    folder: str
    library: str
    kind: str
    prefixes: tuple[str, ...]
    tells: str
    origins: Callable[[Checkpoint, Config], dict[str, Origin]]
    config: Callable[[Checkpoint], Config]
    known: Callable[[Checkpoint], bool] = lambda part: True
    optional: bool = False

    def prefix(self, names: Mapping[str, Any]) -> str | None:
        """What this part's names begin with in a file; None where it is not there."""
        return next((p for p in self.prefixes if f"{p}{self.tells}" in names), None)


@dataclass(frozen=True)
class Layout:
    """A family's single checkpoints.

    title: for people. pipeline: diffusers' class. scheduler: its scheduler_config.json.
    tokenizers: folder -> the token that fills a prompt up, None where the vocabulary is not CLIP's.
    text_width: of what the denoiser attends to; tells UNets apart where no text encoder is in the file.
    """

    title: str
    pipeline: str
    parts: tuple[Part, ...]
    scheduler: Config
    tokenizers: Mapping[str, str | None]
    text_width: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def denoiser(self) -> Part:
        return self.parts[0]


def _shape(part: Checkpoint, name: str) -> tuple[int, ...]:
    entry = part.get(name)
    return entry.shape if entry is not None else ()


def text_width(part: Checkpoint) -> int:
    """The width of the states that a UNet attends to, 0 where it attends to none."""
    return next((e.shape[1] for n, e in part.items() if n.endswith("attn2.to_k.weight")), 0)


def _unet(width: int, first: int, linear: bool, sample_size: int, pooled: bool = False) -> Part:
    def known(part: Checkpoint) -> bool:
        return text_width(part) == width and _shape(part, "input_blocks.0.0.weight")[:1] == (first,)

    return Part(
        folder="unet",
        library="diffusers",
        kind="UNet2DConditionModel",
        prefixes=DENOISER,
        tells="input_blocks.0.0.weight",
        origins=unet_origins,
        config=partial(configs.unet_config, linear=linear, sample_size=sample_size, pooled=pooled),
        known=known,
    )


def _vae(sample_size: int, scaling: float, shift: float | None = None) -> Part:
    return Part(
        folder="vae",
        library="diffusers",
        kind="AutoencoderKL",
        prefixes=_VAE,
        tells="decoder.conv_in.weight",
        origins=vae_origins,
        config=partial(configs.vae_config, sample_size=sample_size, scaling=scaling, shift=shift),
        known=lambda part: _shape(part, "encoder.conv_in.weight")[:1] == (128,),
    )


def _clip(folder: str, prefix: str, *, projected: bool = False) -> Part:
    words = "text_model.embeddings.token_embedding.weight"
    return Part(
        folder=folder,
        library="transformers",
        kind="CLIPTextModelWithProjection" if projected else "CLIPTextModel",
        prefixes=(prefix,),
        tells=words,
        origins=text.projected_clip_origins if projected else text.clip_origins,
        config=partial(configs.clip_config, projected=projected),
        known=lambda part: _shape(part, words) in ((49408, 768), (49408, 1280)),
    )


def _open_clip(folder: str, prefix: str, *, projected: bool, layers_unused: int = 0) -> Part:
    return Part(
        folder=folder,
        library="transformers",
        kind="CLIPTextModelWithProjection" if projected else "CLIPTextModel",
        prefixes=(prefix,),
        tells="token_embedding.weight",
        origins=text.projected_open_clip_origins if projected else text.open_clip_origins,
        config=partial(configs.open_clip_config, projected=projected, layers_unused=layers_unused),
        known=lambda part: _shape(part, "token_embedding.weight") in ((49408, 1024), (49408, 1280)),
    )


def _t5(folder: str, *, optional: bool) -> Part:
    return Part(
        folder=folder,
        library="transformers",
        kind="T5EncoderModel",
        prefixes=("text_encoders.t5xxl.transformer.",),
        tells="shared.weight",
        origins=text.t5_origins,
        config=configs.t5_config,
        known=lambda part: _shape(part, "shared.weight") == (32128, 4096),
        optional=optional,
    )


# entries of model_index.json for parts that a single checkpoint does not hold
_NO_CHECKER = {"requires_safety_checker": False, "safety_checker": [None, None], "feature_extractor": [None, None]}
_NO_IMAGES = {"image_encoder": [None, None], "feature_extractor": [None, None]}

SD1 = Layout(
    title="Stable Diffusion 1",
    pipeline="StableDiffusionPipeline",
    parts=(
        _unet(768, 320, False, 64),
        _vae(512, 0.18215),
        _clip("text_encoder", "cond_stage_model.transformer."),
    ),
    scheduler=schedulers.PNDM,
    tokenizers={"tokenizer": END_OF_TEXT},
    text_width=768,
    extra=_NO_CHECKER,
)
SD2 = Layout(
    title="Stable Diffusion 2",
    pipeline="StableDiffusionPipeline",
    parts=(
        _unet(1024, 320, True, 96),
        _vae(768, 0.18215),
        _open_clip("text_encoder", "cond_stage_model.model.", projected=False, layers_unused=1),
    ),
    scheduler=schedulers.DDIM_V,
    tokenizers={"tokenizer": "!"},
    text_width=1024,
    extra=_NO_CHECKER,
)
SDXL = Layout(
    title="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    parts=(
        _unet(2048, 320, True, 128, pooled=True),
        _vae(1024, 0.13025),
        _clip("text_encoder", "conditioner.embedders.0.transformer."),
        _open_clip("text_encoder_2", "conditioner.embedders.1.model.", projected=True),
    ),
    scheduler=schedulers.EULER,
    tokenizers={"tokenizer": END_OF_TEXT, "tokenizer_2": "!"},
    text_width=2048,
    extra={"force_zeros_for_empty_prompt": True, "image_encoder": [None, None], "feature_extractor": [None, None]},
)
SDXL_REFINER = Layout(
    title="Stable Diffusion XL's refiner",
    pipeline="StableDiffusionXLImg2ImgPipeline",
    parts=(
        _unet(1280, 384, True, 128, pooled=True),
        _vae(1024, 0.13025),
        _open_clip("text_encoder_2", "conditioner.embedders.0.model.", projected=True),
    ),
    scheduler=schedulers.EULER,
    tokenizers={"tokenizer_2": "!"},
    text_width=1280,
    extra={
        "force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True, "text_encoder": [None, None],
        "tokenizer": [None, None], "image_encoder": [None, None], "feature_extractor": [None, None],
    },
)  # fmt: skip
SD3 = Layout(
    title="Stable Diffusion 3",
    pipeline="StableDiffusion3Pipeline",
    parts=(
        Part(
            folder="transformer",
            library="diffusers",
            kind="SD3Transformer2DModel",
            prefixes=DENOISER,
            tells="joint_blocks.0.x_block.attn.qkv.weight",
            origins=transformer.sd3_origins,
            config=configs.sd3_config,
            known=lambda part: _shape(part, "context_embedder.weight")[1:] == (4096,),
        ),
        _vae(1024, 1.5305, 0.0609),
        _clip("text_encoder", "text_encoders.clip_l.transformer.", projected=True),
        _clip("text_encoder_2", "text_encoders.clip_g.transformer.", projected=True),
        _t5("text_encoder_3", optional=True),
    ),
    scheduler=schedulers.FLOW,
    tokenizers={"tokenizer": END_OF_TEXT, "tokenizer_2": "!", "tokenizer_3": None},
    extra=_NO_IMAGES,
)
FLUX = Layout(
    title="Flux",
    pipeline="FluxPipeline",
    parts=(
        Part(
            folder="transformer",
            library="diffusers",
            kind="FluxTransformer2DModel",
            prefixes=DENOISER,
            tells="double_blocks.0.img_attn.qkv.weight",
            origins=transformer.flux_origins,
            config=configs.flux_config,
            known=lambda part: _shape(part, "txt_in.weight") == (3072, 4096),
        ),
        _vae(1024, 0.3611, 0.1159),
        _clip("text_encoder", "text_encoders.clip_l.transformer."),
        _t5("text_encoder_2", optional=False),
    ),
    scheduler=schedulers.FLUX,
    tokenizers={"tokenizer": END_OF_TEXT, "tokenizer_2": None},
    extra=_NO_IMAGES,
)

LAYOUTS = (SD1, SD2, SDXL, SDXL_REFINER, SD3, FLUX)
