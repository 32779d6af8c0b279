"""Diffusers and transformers modules as flat functions of tensors.

The reference session and the exporter use the same wrappers, so both mean the same component by the same inputs
and outputs. A wrapper holds the library's module as `module`; its state dict is that module's under `module.`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch

from ...core.errors import BadArtifact, BadInput
from ...core.json_file import read_json_object
from .called import Called, called, named, told
from .control import ControlNet, FluxControl, SanaControl, Sd3Control, TransformerControlNet, UnetControl


class ClipText(torch.nn.Module):
    """input_ids int64 [batch, tokens] -> last_hidden_state [batch, tokens, dim], pooler_output [batch, dim]."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.module(input_ids=input_ids, return_dict=True)
        return out.last_hidden_state, out.pooler_output


class ClipTextHidden(ClipText):
    """`ClipText`, and the states [batch, tokens, dim] before the first layer and after each of them."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.module(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return (out.last_hidden_state, out.pooler_output, *out.hidden_states)


class ClipTextProjection(ClipText):
    """input_ids int64 [batch, tokens] -> text_embeds [batch, projection], last_hidden_state, and all layers' states."""

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.module(input_ids=input_ids, output_hidden_states=True, return_dict=True)
        return (out.text_embeds, out.last_hidden_state, *out.hidden_states)


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


class UnetWithGuidance(Unet):
    """`Unet` with timestep_cond [batch, dim]: the guidance that a latent consistency model was distilled with."""

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.module(
            sample, timestep, encoder_hidden_states, timestep_cond=timestep_cond, return_dict=False
        )
        return out


class UnetWithSizes(Unet):
    """`Unet` with text_embeds [batch, dim] and time_ids [batch, 6 or 5]: SDXL's pooled text and sizes."""

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        out: tuple[torch.Tensor, ...] = self.module(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )
        return out


class UnetWithSizesAndGuidance(Unet):
    """`UnetWithSizes` with timestep_cond [batch, dim]: a latent consistency model of SDXL."""

    def forward(  # type: ignore[override]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep_cond: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        out: tuple[torch.Tensor, ...] = self.module(
            sample,
            timestep,
            encoder_hidden_states,
            timestep_cond=timestep_cond,
            added_cond_kwargs={"text_embeds": text_embeds, "time_ids": time_ids},
            return_dict=False,
        )
        return out


def unet(module: torch.nn.Module) -> torch.nn.Module:
    """The wrapper that fits a UNet2DConditionModel's config."""
    config: Any = module.config
    if config.addition_embed_type == "text_time":
        return UnetWithSizesAndGuidance(module) if config.time_cond_proj_dim else UnetWithSizes(module)
    return UnetWithGuidance(module) if config.time_cond_proj_dim else Unet(module)


class LanguageStates(torch.nn.Module):
    """input_ids, attention_mask int64 [batch, tokens] -> last_hidden_state [batch, tokens, dim] of a language model."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        model: Any = module
        # transformers 4 takes torch's own attention for Gemma 2, and leaves out the bound on its scores
        model.set_attn_implementation("eager")
        self.module = module

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.module(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, return_dict=True)
        return (out.last_hidden_state,)


class VaeEncoder(torch.nn.Module):
    """sample [batch, 3, height, width] in -1..1 -> latent_parameters [batch, 8, h, w]: means, then log variances.

    An autoencoder without variances (tiny ones, deep compression ones) gives its latents: [batch, channels, h, w].
    """

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        vae: Any = self.module
        out = vae.encode(sample)
        return (out.latent_dist.parameters if hasattr(out, "latent_dist") else out[0],)


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


class Kind(NamedTuple):
    """How a kind of component is made.

    wrap: the library's module -> a flat function of tensors. library: diffusers or transformers. names: the classes
    there that it may be; the first where the config names none of them.
    """

    wrap: Callable[[torch.nn.Module], torch.nn.Module]
    library: str
    names: tuple[str, ...]

    def load_class(self, config: Mapping[str, Any]) -> Any:
        """The library's class for this config."""
        named = config.get("_class_name")
        with quiet_imports():
            library = importlib.import_module(self.library)
            return getattr(library, named if named in self.names else self.names[0])


_SD3 = told("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep")
_FLUX = told("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
_SANA = told("hidden_states", "encoder_hidden_states", "timestep", "encoder_attention_mask")
_VAE = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")


KINDS: dict[str, Kind] = {
    "clip_text": Kind(ClipText, "transformers", ("CLIPTextModel",)),
    "clip_text_hidden": Kind(ClipTextHidden, "transformers", ("CLIPTextModel",)),
    "clip_text_projection": Kind(ClipTextProjection, "transformers", ("CLIPTextModelWithProjection",)),
    "unet": Kind(unet, "diffusers", ("UNet2DConditionModel",)),
    "unet_control": Kind(UnetControl, "diffusers", ("UNet2DConditionModel",)),
    "controlnet": Kind(ControlNet, "diffusers", ("ControlNetModel",)),
    "vae_encoder": Kind(VaeEncoder, "diffusers", _VAE),
    "vae_decoder": Kind(VaeDecoder, "diffusers", _VAE),
    "gemma2_text": Kind(LanguageStates, "transformers", ("Gemma2Model",)),
    "sana_transformer": Kind(named(_SANA, Called), "diffusers", ("SanaTransformer2DModel",)),
    "t5_encoder": Kind(called("input_ids"), "transformers", ("T5EncoderModel",)),
    "sd3_transformer": Kind(named(_SD3, Called), "diffusers", ("SD3Transformer2DModel",)),
    "flux_transformer": Kind(named(_FLUX, Called), "diffusers", ("FluxTransformer2DModel",)),
    "sana_transformer_control": Kind(named(_SANA, SanaControl), "diffusers", ("SanaTransformer2DModel",)),
    "sd3_transformer_control": Kind(named(_SD3, Sd3Control), "diffusers", ("SD3Transformer2DModel",)),
    "flux_transformer_control": Kind(named(_FLUX, FluxControl), "diffusers", ("FluxTransformer2DModel",)),
    "sana_controlnet": Kind(named(_SANA, TransformerControlNet), "diffusers", ("SanaControlNetModel",)),
    "sd3_controlnet": Kind(named(_SD3, TransformerControlNet), "diffusers", ("SD3ControlNetModel",)),
    "flux_controlnet": Kind(named(_FLUX, TransformerControlNet), "diffusers", ("FluxControlNetModel",)),
    "image_classifier": Kind(ImageClassifier, "transformers", ("AutoModelForImageClassification",)),
}


# behind the name of a UNet's kind: the share of tokens that it merges
_MERGING = re.compile(r"(unet\w*):tome=(0?\.\d+)")


def is_kind(text: object) -> TypeGuard[str]:
    """Whether `kind_named` knows it."""
    try:
        return isinstance(text, str) and bool(kind_named(text))
    except BadArtifact:
        return False


def kind_named(text: str) -> Kind:
    """The kind that a component's `details` name: one of `KINDS`, or such a UNet that merges tokens, `unet:tome=0.5`.

    Raises:
        BadArtifact: there is no such kind.
    """
    merging = _MERGING.fullmatch(text)
    known = KINDS.get(merging[1] if merging else text)
    if known is None:
        raise BadArtifact(f"There is no kind of component {text!r}.", "pip install --upgrade vitrify")
    if merging is None:
        return known
    plain, ratio = known.wrap, float(merging[2])

    def wrap(module: torch.nn.Module) -> torch.nn.Module:
        with quiet_imports():
            from .merging import merge_tokens
        return plain(merge_tokens(module, ratio))

    return known._replace(wrap=wrap)


def build(kind: str, config: dict[str, Any]) -> torch.nn.Module:
    """The wrapped module made from a config.json's content, with fresh weights on the current default device."""
    known = kind_named(kind)
    cls = known.load_class(config)
    with quiet_imports():  # the libraries import a model's own file when it is made
        if known.library == "diffusers":
            return known.wrap(cls.from_config(config).eval())
        if known.names[0].startswith("Auto"):
            from transformers import AutoConfig

            given = {k: v for k, v in config.items() if k != "model_type"}
            return known.wrap(cls.from_config(AutoConfig.for_model(config["model_type"], **given)).eval())
        return known.wrap(cls(cls.config_class.from_dict(config)).eval())


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
    known = kind_named(kind)
    word = "dtype" if known.library == "transformers" and _takes_dtype() else "torch_dtype"
    given = {word: torch.float32, "variant": variant, "use_safetensors": True, "local_files_only": True}
    with no_bars(), quiet_imports():
        cls = known.load_class(_config(folder))
        module, info = cls.from_pretrained(str(folder), output_loading_info=True, **given)
    lost = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise BadArtifact(f"{folder} lacks {', '.join(lost[:3])}{more}.", "Download the model again, whole.")
    return known.wrap(module.eval())


def _config(folder: Path) -> dict[str, Any]:
    try:
        return read_json_object(folder / "config.json")
    except BadInput as exc:  # of a component that is opened it is a damaged part
        raise BadArtifact(exc.what, "Download the model again, whole.") from exc


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
