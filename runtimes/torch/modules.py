"""Diffusers and transformers modules as flat functions of tensors.

The reference session and the exporter use the same wrappers, so both mean the same component by the same inputs
and outputs. A wrapper holds the library's module as `module`; its state dict is that module's under `module.`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ...core.errors import BadArtifact


class ClipText(torch.nn.Module):
    """input_ids int64 [batch, tokens] -> last_hidden_state [batch, tokens, dim], pooler_output [batch, dim]."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.module(input_ids=input_ids, return_dict=True)
        return out.last_hidden_state, out.pooler_output


class Unet(torch.nn.Module):
    """sample [batch, 4, height, width], timestep [], encoder_hidden_states [batch, tokens, dim] -> out_sample."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.module(sample, timestep, encoder_hidden_states, return_dict=False)
        return out


class VaeEncoder(torch.nn.Module):
    """sample [batch, 3, height, width] in -1..1 -> latent_parameters [batch, 8, h, w]: means, then log variances."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vae: Any = self.module
        return (vae.encode(sample).latent_dist.parameters,)


class VaeDecoder(torch.nn.Module):
    """latent_sample [batch, 4, h, w], unscaled -> sample [batch, 3, height, width] in about -1..1."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, latent_sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vae: Any = self.module
        out: tuple[torch.Tensor, ...] = vae.decode(latent_sample, return_dict=False)
        return out


class ImageClassifier(torch.nn.Module):
    """pixel_values [batch, 3, height, width] -> logits [batch, labels]."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (self.module(pixel_values=pixel_values, return_dict=True).logits,)


def _diffusers(name: str) -> Callable[[], Any]:
    def load() -> Any:
        with quiet_imports():
            import diffusers

            return getattr(diffusers, name)

    return load


def _transformers(name: str) -> Callable[[], Any]:
    def load() -> Any:
        with quiet_imports():
            import transformers

            return getattr(transformers, name)

    return load


# kind -> (wrapper, the library's class)
KINDS: dict[str, tuple[type[torch.nn.Module], Callable[[], Any]]] = {
    "clip_text": (ClipText, _transformers("CLIPTextModel")),
    "unet": (Unet, _diffusers("UNet2DConditionModel")),
    "vae_encoder": (VaeEncoder, _diffusers("AutoencoderKL")),
    "vae_decoder": (VaeDecoder, _diffusers("AutoencoderKL")),
    "image_classifier": (ImageClassifier, _transformers("AutoModelForImageClassification")),
}


def build(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """The wrapped module made from a config.json's content, with fresh weights on the current default device."""
    wrapper, load_class = KINDS[kind]
    cls = load_class()
    with quiet_imports():  # the libraries import a model's own file when it is made
        if kind == "clip_text":
            return wrapper(cls(cls.config_class.from_dict(config)).eval())
        if kind == "image_classifier":
            from transformers import AutoConfig

            given = {k: v for k, v in config.items() if k != "model_type"}
            return wrapper(cls.from_config(AutoConfig.for_model(config["model_type"], **given)).eval())
        return wrapper(cls.from_config(config).eval())


def build_empty(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """`build` with parameters that have no data (meta tensors); what the module computes by itself is there."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build(kind, config)


def load(kind: str, folder: Path, variant: str | None = None) -> torch.nn.Module:
    """The wrapped module with the weights of `folder`, in float32.

    Raises:
        BadArtifact: the checkpoint lacks weights, or they have other shapes: the libraries would make up random ones.
    """
    wrapper, load_class = KINDS[kind]
    word = "dtype" if _takes_dtype() or kind not in ("clip_text", "image_classifier") else "torch_dtype"
    if kind in ("unet", "vae_encoder", "vae_decoder"):
        word = "torch_dtype"
    given = {word: torch.float32, "variant": variant, "use_safetensors": True, "local_files_only": True}
    with no_bars(), quiet_imports():
        module, info = load_class().from_pretrained(str(folder), output_loading_info=True, **given)
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise BadArtifact(f"{folder} lacks {', '.join(lost[:3])}{more}.", "Download the model again, whole.")
    return wrapper(module.eval())


# what they warn of concerns kernels and processors that nothing here uses, or names that they are about to change
_CHATTER = ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers", "transformers.utils.import_utils")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """The libraries warn of nothing that is not of the model while this lasts.

    diffusers and transformers import those of quantization, where they are installed, together with any model.
    """
    loggers = [logging.getLogger(name) for name in _CHATTER]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """The libraries draw no progress bars of their own while this lasts."""
    import diffusers.utils.logging
    import transformers.utils.logging

    bars = (diffusers.utils.logging, transformers.utils.logging)
    drawn = [getattr(b, "_tqdm_active", True) for b in bars]
    for b in bars:
        b.disable_progress_bar()
    try:
        yield
    finally:
        for b, was in zip(bars, drawn, strict=True):
            if was:
                b.enable_progress_bar()


def _takes_dtype() -> bool:
    import transformers

    return int(transformers.__version__.split(".")[0]) >= 5
