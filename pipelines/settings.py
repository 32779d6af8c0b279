"""What a pipeline must know besides its components: the `pipeline` part of a manifest, read from a model's configs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..core.errors import BadInput

# the schedulers, and what prepares pictures, are imported where they are used: to open an artifact takes neither

Config = Mapping[str, Any]
DENOISERS = ("unet", "transformer")  # a pipeline has one of these components
PREVIEW = "preview_decoder"  # the component, and the folder, of a decoder for previews
STAND_IN = "ddim"  # draws in place of a scheduler that we do not have; it takes the noise options of each of them


@contextmanager
def complete(of: str) -> Iterator[None]:
    """Translate what a config that lacks an entry, or has one of another kind, leads to."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadInput(
            f"The configs of this {of} lack an entry or have a wrong one ({type(exc).__name__}: {exc}).",
            "Check that each config.json is the model's own.",
        ) from exc


def diffusion_settings(
    vae: Config,
    scheduler: Config,
    *,
    side: int | Sequence[int],
    multiple: int,
    denoiser: int,
    tokenizers: Sequence[str] = ("tokenizer",),
) -> dict[str, Any]:
    """What the pipelines of all diffusion families must know.

    A scheduler that we cannot run is kept where another one can stand in for it: then a request has to name one.

    Args:
        vae: the autoencoder's config.json. scheduler: scheduler_config.json.
        side: of the latents that the model was trained with, or (height, width).
        multiple: what the latents' sides must be divisible by.
        denoiser: channels that the denoiser takes; more than the VAE's where it also sees a mask.
        tokenizers: their folders, the first being the main one.

    Raises:
        BadInput: the scheduler's class or options are not supported.
    """
    from .schedulers import scheduler_from_config

    scheduler_from_config(scheduler, STAND_IN if is_exchangeable(scheduler) else None)
    scale, channels = vae_scale(vae), int(vae["latent_channels"])
    height, width = (side, side) if isinstance(side, int) else side
    files: dict[str, str] = {}
    for name in tokenizers:
        files |= {name: f"{name}/tokenizer.json", f"{name}_config": f"{name}/tokenizer_config.json"}
    return {
        "tasks": ["inpaint"] if denoiser == 2 * channels + 1 else ["text2img", "img2img", "inpaint"],
        "scheduler": {k: v for k, v in scheduler.items() if k != "_diffusers_version"},
        "latents": {"channels": channels, "scale": scale, "multiple": multiple, "denoiser": denoiser},
        "vae": vae_factors(vae),
        "size": [int(height) * scale, int(width) * scale],
        "files": files,
    }


def vae_factors(vae: Config) -> dict[str, float]:
    """What a VAE's latents are shifted and multiplied by for the denoiser, as diffusers' classes have it by default."""
    usual = 0.18215 if vae.get("_class_name", "AutoencoderKL") == "AutoencoderKL" else 1.0
    return {
        "scaling_factor": float(vae.get("scaling_factor") or usual),
        "shift_factor": float(vae.get("shift_factor") or 0.0),
    }


def vae_scale(vae: Config) -> int:
    """Pixels per latent pixel along one side, of an autoencoder of any of the kinds that diffusers has."""
    channels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    if not channels:
        raise KeyError("block_out_channels")
    return int(2 ** (len(channels) - 1))


def is_exchangeable(scheduler: Config) -> bool:
    """Whether a model's scheduler is not one of ours, but one of ours can take over its options."""
    from .schedulers import EXCHANGEABLE_CLASSES

    return scheduler.get("_class_name") in EXCHANGEABLE_CLASSES


@complete("classifier")
def classifier_settings(config: Config, preprocessor: Config) -> dict[str, Any]:
    """The settings of an image classifier. function: softmax; sigmoid for several labels at once or a single one.

    Raises:
        BadInput: the preprocessing is not supported, or a config lacks something.
    """
    from .preprocess import ImagePreprocessor

    labels = labels_of(config)
    problem = config.get("problem_type")
    single = len(labels) == 1 and problem is None
    function = "sigmoid" if problem == "multi_label_classification" or single else "softmax"
    if problem == "regression":
        function = "none"
    prepare = ImagePreprocessor.from_config(preprocessor, model_type=config.get("model_type"))
    return {
        "family": "image-classification",
        "tasks": ["classify"],
        "labels": labels,
        "function": function,
        "preprocess": prepare.to_json(),
        "files": {},
    }


def prepared_size(preprocess: Config) -> tuple[int, int] | None:
    """(height, width) that every picture comes out with; None where that follows from the picture's own.

    Args:
        preprocess: a preprocessor_config.json, or the settings' `preprocess`.

    Raises:
        BadInput: it is not supported.
    """
    from .preprocess import ImagePreprocessor

    prepare = ImagePreprocessor.from_config(preprocess)
    if prepare.do_center_crop and prepare.crop_size is not None:
        return prepare.crop_size
    if not prepare.do_resize:
        return None
    if "shortest_edge" not in prepare.size:
        return prepare.size["height"], prepare.size["width"]
    edge = prepare.size["shortest_edge"]
    return None if prepare.crop_pct is None else (edge, edge)


def labels_of(config: Config) -> list[str]:
    """The labels in order of their numbers; LABEL_0, LABEL_1, ... where the config names none.

    Raises:
        BadInput: the config's labels are not numbered.
    """
    table = config.get("id2label") or {i: f"LABEL_{i}" for i in range(int(config.get("num_labels", 2)))}
    try:
        return [str(table[key]) for key in sorted(table, key=int)]
    except (ValueError, TypeError, AttributeError) as exc:
        raise BadInput(f"id2label in config.json is not a table of numbers: {exc}.", "Correct config.json.") from exc
