"""What a single file is, from its header alone: a layout that we know, or why it is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ...core.errors import BadInput
from .layouts import DENOISER, FLUX, LAYOUTS, SD3, Layout, text_width
from .origins import Checkpoint

_FOLDER = "Give the folder of the whole model, the one with model_index.json."
_WHOLE = "Give a file of a whole model, or --config FOLDER with a diffusers model that has the rest."
# what a name holds -> what a file with it is, and what to do about it
_OTHERS = (
    (("control_model.", "controlnet_cond_embedding.", "input_hint_block."), "a ControlNet",
     "Give the diffusers folder of the ControlNet."),
    (("distilled_guidance_layer.",), "a Chroma transformer", ""),
    (("single_stream_modulation.", "early_stream_modulations."), "a Flux 2 or 3 transformer", ""),
    (("motion_modules.",), "an AnimateDiff motion module", ""),
    (("edm_mean", "edm_vpred.sigma_max"), "a model that was trained with another noise schedule (EDM)", ""),
    (("scale_weight", "scaled_fp8", "weight_scale", ".quant_state.", ".qweight", ".absmax"), "a quantized checkpoint",
     "Take the model in float16, bfloat16 or plain eight-bit floats, and quantize it with `vitrify compile --quant`."),
    (("emb_params", "string_to_param", "string_to_token"), "a textual inversion, a few words and not a model", ""),
)  # fmt: skip
_LORA = ("lora_up.", "lora_down.", "lora_A.", "lora_B.", ".lora.up.", ".lora.down.", ".hada_w", ".lokr_w", ".oft_")
# a name that tells -> what the file is alone
_ALONE = (
    ("decoder.conv_in.weight", "an autoencoder (VAE)", _WHOLE),
    ("first_stage_model.decoder.conv_in.weight", "an autoencoder (VAE)", _WHOLE),
    ("text_model.embeddings.token_embedding.weight", "a CLIP text encoder", _WHOLE),
    ("embeddings.token_embedding.weight", "a CLIP text encoder", _WHOLE),
    ("token_embedding.weight", "an OpenCLIP text encoder", _WHOLE),
    ("shared.weight", "a T5 text encoder", _WHOLE),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", "a T5 text encoder", _WHOLE),
    ("down_blocks.0.resnets.0.norm1.weight", "a UNet in diffusers' layout", _FOLDER),
    ("transformer_blocks.0.attn.to_q.weight", "a transformer in diffusers' layout", _FOLDER),
    ("transformer_blocks.0.attn1.to_q.weight", "a transformer in diffusers' layout", _FOLDER),
    ("classifier.weight", "a classifier", "Give the folder that it lies in, with its config.json."),
)


def layout_of(path: Path, names: Checkpoint, pipeline: str | None = None) -> Layout:
    """The layout of a checkpoint.

    Args:
        path: for messages. names: its tensors.
        pipeline: diffusers' class that the user's configs are of; it decides where the file does not tell.

    Raises:
        BadInput: none that is known; says what the file is instead, or what was looked for.
    """
    for marks, what, fix in _OTHERS:
        if any(mark in name for name in names for mark in marks):
            raise BadInput(f"{path} is {what}, which cannot be exported.", fix or f"Known are: {_titles()}.")
    if any(mark in name for name in names for mark in _LORA):
        raise BadInput(
            f"{path} is a LoRA: changes to a model, not a model.",
            "Export the model that it was trained on, and give the LoRA to `vitrify generate --lora`.",
        )
    fitting = [layout for layout in LAYOUTS if layout.denoiser.prefix(names) is not None]
    if not fitting:
        raise _unknown(path, names)
    if fitting[0] in (SD3, FLUX):
        return _configured(path, fitting, fitting, pipeline)[0]
    told = [layout for layout in fitting if _has_text_encoders(layout, names)]
    width = text_width({n.removeprefix(DENOISER[0]): e for n, e in names.items()})
    told = told or [layout for layout in fitting if layout.text_width == width]
    chosen = _configured(path, told, fitting, pipeline)
    if not chosen:
        widths = ", ".join(f"{layout.text_width} ({layout.title})" for layout in fitting)
        raise BadInput(
            f"{path} holds no text encoder, and its UNet attends to text of width {width}; known are {widths}.",
            "Give --config FOLDER, a diffusers folder or an artifact of the same architecture.",
        )
    return chosen[0]


def _has_text_encoders(layout: Layout, names: Mapping[str, object]) -> bool:
    encoders = [part for part in layout.parts if part.folder.startswith("text_encoder")]
    return all(part.prefix(names) is not None for part in encoders)


def _configured(path: Path, told: list[Layout], fitting: list[Layout], pipeline: str | None) -> list[Layout]:
    """Of the layouts that a file may have, those that the user's configs are of."""
    if pipeline is None:
        return told
    # an inpainting model's class is another one of the same family
    stem = pipeline.removesuffix("Pipeline").removesuffix("Inpaint").removesuffix("Img2Img")
    same = [one for one in told or fitting if one.pipeline.removesuffix("Pipeline").removesuffix("Img2Img") == stem]
    if told and not same:
        raise BadInput(
            f"{path} is a {told[0].title} checkpoint, and --config names a {pipeline}.",
            "Give the folder of a model of the same architecture.",
        )
    return same


def _unknown(path: Path, names: Checkpoint) -> BadInput:
    for tell, what, fix in _ALONE:
        if tell in names:
            return BadInput(f"{path} holds nothing but {what}.", fix)
    looked = ", ".join(dict.fromkeys(f"{layout.denoiser.tells} ({layout.denoiser.kind})" for layout in LAYOUTS))
    has = ", ".join(list(names)[:3]) or "nothing"
    return BadInput(
        f"{path} has none of the layouts that are known. Looked for, also behind {DENOISER[0]!r}: {looked}. "
        f"It holds {has}{', ...' if len(names) > 3 else ''}.",
        f"Known are single checkpoints of {_titles()} in their original layout; for others give a diffusers folder.",
    )


def _titles() -> str:
    return ", ".join(layout.title for layout in LAYOUTS)
