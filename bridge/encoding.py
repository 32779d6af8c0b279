"""Text encoders and autoencoders as diffusers' pipelines call them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny, AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution, EncoderOutput
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.models.clip.modeling_clip import CLIPTextModelOutput

from ..core.errors import BadInput
from ..core.tensors import Array, TensorSpec
from ..pipelines.families.base import check_finite
from ..runtimes.base import Session
from .values import to_array, to_tensor

Ask = Callable[[], Session]
_HIDDEN = "hidden_states."


def text_call(ask: Ask, name: str, place: Callable[[], torch.Tensor], hidden: bool) -> Callable[..., Any]:
    """The `forward` of a text encoder's stand-in: CLIP's, with or without projection, T5's and others like them.

    Args:
        place: gives a tensor of the dtype and device of the outputs. hidden: whether its config asks for all states.
    """

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> Any:
        for key, value in others.items():
            if value is not None and value is not False:
                raise BadInput(f"{key} was given to {name}, whose graph has no such input.", "Leave it out.")
        session = ask()
        given = {"input_ids": input_ids} | ({} if attention_mask is None else {"attention_mask": attention_mask})
        out = session.run(_text_inputs(name, given, session.inputs))
        like = place()
        values = {key: to_tensor(array, like) for key, array in out.items()}
        check_finite(name, next(iter(out.values())), "of a prompt")
        states = tuple(values[key] for key in sorted((k for k in values if k.startswith(_HIDDEN)), key=_number))
        wanted = hidden if output_hidden_states is None else output_hidden_states
        if wanted and not states:
            raise BadInput(
                f"The hidden states of {name} are asked for (clip_skip), and its graph gives only the last one.",
                "Leave clip_skip out, or keep the text encoder in PyTorch (components=...).",
            )
        result = _text_output(values, states if wanted else None)
        return result if return_dict in (None, True) else result.to_tuple()

    return forward


def _text_inputs(name: str, given: Mapping[str, Any], inputs: Mapping[str, TensorSpec]) -> dict[str, Array]:
    """A mask that hides nothing is the same as none; one that a graph has no input for is refused."""
    ready = {key: to_array(key, value, inputs[key]) for key, value in given.items() if key in inputs}
    if "attention_mask" in inputs and "attention_mask" not in given:
        ready["attention_mask"] = np.ones(ready["input_ids"].shape, inputs["attention_mask"].dtype.value)
    elif "attention_mask" not in inputs and "attention_mask" in given and not bool(given["attention_mask"].all()):
        raise BadInput(
            f"{name} is given a mask, and its graph takes none.",
            "Keep the text encoder in PyTorch (components=...), or export the model again.",
        )
    return ready


def _number(name: str) -> int:
    return int(name.removeprefix(_HIDDEN))


def _text_output(values: Mapping[str, torch.Tensor], states: tuple[torch.Tensor, ...] | None) -> Any:
    """transformers' own output of an encoder that gives these; pipelines also take its values by their number."""
    last = values.get("last_hidden_state")
    if "text_embeds" in values:
        return CLIPTextModelOutput(text_embeds=values["text_embeds"], last_hidden_state=last, hidden_states=states)
    if "pooler_output" in values:
        pooled = values["pooler_output"]
        return BaseModelOutputWithPooling(last_hidden_state=last, pooler_output=pooled, hidden_states=states)
    return BaseModelOutput(last_hidden_state=last, hidden_states=states)


def autoencoder_calls(cls: type, channels: int, encoder: Ask, decoder: Ask) -> dict[str, Callable[..., Any]]:
    """`encode`, `decode` and `forward` of an autoencoder's stand-in.

    The graphs: a picture in -1..1 to the means and log variances of its latents, or, of autoencoders that have none,
    to the latents; latents to a picture.

    Args:
        cls: the autoencoder's class. channels: of its latents.
    """

    def encode(x: torch.Tensor, return_dict: bool = True) -> Any:
        found = _one("vae_encoder", encoder(), x)
        if found.shape[1] == 2 * channels:
            posterior = DiagonalGaussianDistribution(found)
            return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)
        if not return_dict:
            return (found,)
        return AutoencoderTinyOutput(latents=found) if issubclass(cls, AutoencoderTiny) else EncoderOutput(latent=found)

    def decode(z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> Any:
        sample = _one("vae_decoder", decoder(), z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        found = encode(sample, return_dict=False)[0]
        if isinstance(found, DiagonalGaussianDistribution):
            found = found.sample(generator=generator) if sample_posterior else found.mode()
        return decode(found, return_dict=return_dict)

    return {"encode": encode, "decode": decode, "forward": forward}


def _one(name: str, session: Session, value: torch.Tensor) -> torch.Tensor:
    """The one output of a graph with one input."""
    ((key, spec),) = session.inputs.items()
    array = next(iter(session.run({key: to_array(key, value, spec)}).values()))
    check_finite(name, array, "instead of a picture" if name == "vae_decoder" else "of a picture")
    return to_tensor(array, value)
