"""ControlNets for the transformers of SD 3, 3.5, Flux and Sana, and those transformers.

Such a ControlNet (Zhang et al., arXiv 2302.05543) has fewer blocks than its transformer, which adds what it gives to
the picture's tokens behind its own blocks; what goes where is said by the family, see `Family.residual_behind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...core.errors import BadInput
from ...core.tensors import DType, TensorSpec
from ...pipelines.control import BLOCK, SINGLE
from ..spec import ComponentSpec, Config
from .flux import FLUX
from .narrow import attention_width
from .sana import SANA
from .sd3 import SD3

F32 = DType.FLOAT32


@dataclass(frozen=True)
class _Kind:
    """The ControlNets of one kind of transformer.

    net: the kind of component. transformer: the spec that theirs is like. singles: whether there are blocks that read
    text and picture as one, after the others. last: whether something is added behind the very last block.
    """

    net: str
    transformer: ComponentSpec
    singles: bool
    last: bool

    @property
    def stems(self) -> tuple[str, ...]:
        """Names of residuals, without the numbers; each has a batch and tokens of its own, see `_SYMBOLS`."""
        return (BLOCK, SINGLE) if self.singles else (BLOCK,)

    def names(self, config: Config, *, last: bool) -> list[str]:
        """The residuals of a config's blocks, in the order in which they are added."""
        count = int(config["num_layers"]) - (0 if last else 1)
        names = [f"{BLOCK}{number}" for number in range(count)]
        singles = int(config["num_single_layers"]) if self.singles else 0
        return names + [f"{SINGLE}{number}" for number in range(singles)]


_SYMBOLS = {BLOCK: ("control_batch", "control_tokens"), SINGLE: ("single_batch", "single_tokens")}


def _transformer(specs: tuple[ComponentSpec, ...]) -> ComponentSpec:
    return next(spec for spec in specs if spec.name == "transformer")


_KINDS = {
    "SD3ControlNetModel": _Kind("sd3_controlnet", _transformer(SD3), singles=False, last=False),
    "FluxControlNetModel": _Kind("flux_controlnet", _transformer(FLUX), singles=True, last=True),
    "SanaControlNetModel": _Kind("sana_controlnet", _transformer(SANA), singles=False, last=False),
}
CLASSES = tuple(_KINDS)


def takes_control(spec: ComponentSpec) -> bool:
    """Whether a component is a transformer for which there are ControlNets."""
    return any(spec.kind == kind.transformer.kind for kind in _KINDS.values())


def with_blocks(spec: ComponentSpec) -> ComponentSpec:
    """The transformer's spec with the residuals of a ControlNet as further inputs, one for each of its blocks.

    Their batch and tokens are symbols of their own, shared among those of one kind of blocks: a call gives all of a
    kind in full, or all as [1, 1, width], which is how the graph is traced; each is added by one Add that broadcasts.
    """
    kind = next(kind for kind in _KINDS.values() if kind.transformer.kind == spec.kind)

    def inputs(config: Config) -> dict[str, TensorSpec]:
        specs = {stem: TensorSpec(F32, (*_SYMBOLS[stem], attention_width(config))) for stem in kind.stems}
        names = kind.names(config, last=kind.last)
        return spec.inputs(config) | {n: specs[n.rstrip("0123456789")] for n in names}

    def example(config: Config) -> dict[str, int]:
        return spec.example(config) | plain

    def shapes(config: Config) -> dict[str, tuple[int, int, int]]:
        own = spec.shapes(config)
        _, usual, most = ({n: size[i] for n, size in own.items()} for i in range(3))
        batches, tokens = (1, usual["batch"], most["batch"]), (1, _tokens(config, usual), _tokens(config, most))
        made = dict(own)
        for batch_name, tokens_name in (_SYMBOLS[stem] for stem in kind.stems):
            made |= {batch_name: batches, tokens_name: tokens}
        return made

    def checks(config: Config) -> list[dict[str, int]]:
        own = spec.checks(config)
        full = [s | _full(kind.stems, config, s) for s in own]
        mixed = [own[-1] | plain | _full((BLOCK,), config, own[-1])] if kind.singles else []
        return [*full, *mixed, own[-1] | plain]

    plain = {symbol: 1 for stem in kind.stems for symbol in _SYMBOLS[stem]}
    control = f"{spec.kind}_control"
    return replace(spec, kind=control, inputs=inputs, example=example, shapes=shapes, checks=checks)


def flow_controlnet(config: Mapping[str, Any]) -> ComponentSpec:
    """The component of a ControlNet, by its config's class, which is one of `CLASSES`."""
    kind = _KINDS[str(config["_class_name"])]
    spec = kind.transformer

    def inputs(config: Config) -> dict[str, TensorSpec]:
        own = spec.inputs(config)
        more = {"controlnet_cond": own["hidden_states"], "conditioning_scale": TensorSpec(F32, ())}
        return own | more

    def outputs(config: Config) -> dict[str, TensorSpec]:
        residual = TensorSpec(F32, ("batch", "image_tokens", attention_width(config)))
        return dict.fromkeys(kind.names(config, last=True), residual)

    return replace(spec, name="controlnet", kind=kind.net, folder="", inputs=inputs, outputs=outputs)


def check_flow_controlnet(given: str, config: Mapping[str, Any]) -> None:
    """Refuse ControlNets whose call needs more than ours gives.

    Raises:
        BadInput: several ControlNets in one, one for inpainting, one that reads pixels, or one that has not all that it
            needs without its model.
    """
    if config.get("num_mode") is not None:
        why = f"holds ControlNets for {config['num_mode']} kinds of control pictures behind a switch (num_mode)"
    elif config.get("extra_conditioning_channels"):
        why = "also sees a mask, for inpainting (extra_conditioning_channels)"
    elif config.get("conditioning_embedding_channels") is not None:
        why = "sees the control picture's pixels instead of its latents (conditioning_embedding_channels)"
    elif config.get("use_pos_embed", True) is False or config.get("joint_attention_dim", 1) is None:
        why = "has no positions of its own (use_pos_embed), or reads no text (joint_attention_dim)"
    else:
        return
    raise BadInput(f"{given} {why}, which is not supported.", "Use another ControlNet.")


def flow_settings(config: Config) -> dict[str, Any]:
    """`control` of the manifest's `pipeline` part of such a ControlNet.

    encoded: its picture is encoded by the model's VAE; drawn: sampled from what the VAE gives, else the mean is taken;
    shifted: the VAE's shift is taken off. zeros: inputs that are given as zeros.

    As diffusers' StableDiffusion3ControlNetPipeline, FluxControlNetPipeline and SanaControlNetPipeline have it. The
    first samples too, but not from the request's own random numbers: no seed tells which picture it sees.
    """
    kind = _KINDS[str(config["_class_name"])]
    zeros = kind.net == "sd3_controlnet" and bool(config.get("force_zeros_for_pooled_projection", True))
    return {
        "residuals": len(kind.names(config, last=True)),
        "pooled": False,
        "encoded": {"drawn": kind.net == "flux_controlnet", "shifted": not zeros},
        "zeros": ["pooled_projections"] if zeros else [],
    }


def _full(stems: tuple[str, ...], config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of whole residuals beside latents of these."""
    own = (sizes["batch"], _tokens(config, sizes))
    return {symbol: size for stem in stems for symbol, size in zip(_SYMBOLS[stem], own, strict=True)}


def _tokens(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Of a picture of these sizes."""
    if "image_tokens" in sizes:
        return sizes["image_tokens"]
    patch = int(config.get("patch_size") or 1)
    return (sizes["height"] // patch) * (sizes["width"] // patch)
