"""LoRA files: safetensors with two small matrices a layer, in the layouts that trainers write.

W + strength * alpha / rank * up @ down (Hu et al., "LoRA", 2021). For a convolution `down` has the kernel and `up` is
1x1 (LoCon). Only the header is read here; a pickle is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...core.dtypes import FLOATS
from ...core.errors import BadInput
from ...core.safetensors_header import TensorEntry, read_header, read_metadata, read_tensor
from ..random import FloatArray

_SETTINGS = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings, as JSON
_FORMATS = re.compile(
    r"""(?P<layer>.+?)(?:
        \.lora_(?P<kohya>down|up|mid)                              # kohya-ss and LyCORIS
      | \.lora_(?P<peft>[AB])(?:\.(?!weight$)[^.]+)?               # PEFT; between them the adapter's name
      | (?:\.lora|\.lora_linear_layer|_lora)\.(?P<diffusers>down|up)  # diffusers' own
    )\.weight""",
    re.VERBOSE,
)
_ALPHA = re.compile(r"(?P<layer>.+?)(?:\.lora|\.lora_linear_layer|_lora)?\.alpha")
_PARTS = {"A": "down", "B": "up"}
# what else trainers write, by a part of its name
_OTHERS = {
    "dora_scale": "DoRA", "lora_magnitude_vector": "DoRA", "hada_w": "LoHa", "lokr_w": "LoKr", "oft_": "OFT",
    "lora_B.bias": "a LoRA with biases", ".diff": "whole differences of weights", ".w_norm": "changed norms",
    ".b_norm": "changed norms", "on_input": "IA3", "a1.weight": "GLoRA",
}  # fmt: skip


@dataclass(frozen=True)
class LoraLayer:
    """What a LoRA adds to one layer.

    name: as the file writes it, with what names the component. down: [rank, in] or [rank, in, height, width];
    up: [out, rank], with two sizes of 1 more for a convolution. mid: [rank, rank, height, width] between them, where
    `down` is 1x1 (Tucker's decomposition). scale: alpha / rank.
    """

    name: str
    down: TensorEntry
    up: TensorEntry
    mid: TensorEntry | None
    scale: float

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width of the convolution; () of a linear layer."""
        return (self.mid or self.down).shape[2:]

    @property
    def sizes(self) -> tuple[int, ...]:
        """[out, in, ...] of the weight that it changes."""
        return (self.up.shape[0], self.down.shape[1], *self.kernel)

    def factors(self) -> tuple[FloatArray, FloatArray]:
        """(down float32 [rank, in, ...], up float32 [out, rank] with the scale in it).

        Raises:
            BadInput, DiskError: the file changed or the disk failed.
        """
        down, up = _floats(self.down), _floats(self.up)
        if self.mid is not None:
            inner = down.reshape(down.shape[:2])
            down = np.einsum("rs...,si->ri...", _floats(self.mid), inner).astype(np.float32)
        return down, up.reshape(up.shape[:2]) * np.float32(self.scale)


@dataclass(frozen=True)
class Lora:
    """A LoRA that was read: its layers by the names that the file gives them."""

    path: Path
    layers: Mapping[str, LoraLayer]

    @property
    def name(self) -> str:
        return self.path.stem


def read_lora(path: Path | str) -> Lora:
    """Read a LoRA's header.

    Layers are named as kohya-ss (`lora_unet_...`), diffusers and PEFT (`unet....lora_A.weight`), or ComfyUI
    (`diffusion_model....`) write them; which weights they mean is found when it meets a model.

    Raises:
        BadInput: no LoRA, another kind of change (DoRA, LoHa, ...), a layer that lacks a half, sizes that do not fit
            each other, or no safetensors file.
        DiskError: the disk failed.
    """
    path = Path(path)
    entries = read_header(path)
    parts: dict[str, dict[str, TensorEntry]] = {}
    alphas: dict[str, TensorEntry] = {}
    for key, entry in entries.items():
        if (match := _FORMATS.fullmatch(key)) is not None:
            part = match["kohya"] or match["diffusers"] or _PARTS[match["peft"]]
            parts.setdefault(match["layer"], {})[part] = entry
        elif (match := _ALPHA.fullmatch(key)) is not None:
            alphas[match["layer"]] = entry
        else:
            raise _no_lora(path, key, entries)
    settings = _settings(path)
    layers = {name: _layer(path, name, found, alphas.get(name), settings) for name, found in parts.items()}
    if not layers:
        raise BadInput(f"{path} has no layers of a LoRA.", "Give a LoRA's .safetensors file.")
    return Lora(path, layers)


def _no_lora(path: Path, key: str, entries: Mapping[str, TensorEntry]) -> BadInput:
    """Why a file with this tensor in it is none that can be used."""
    kind = next((name for part, name in _OTHERS.items() if part in key), None)
    if kind is not None:
        return BadInput(f"{path} is {kind} ({key}), which is not supported.", "Use a LoRA (lora_down and lora_up).")
    if "emb_params" in entries or len(entries) == 1 or {"clip_l", "clip_g"} & entries.keys():
        return BadInput(f"{path} is a textual inversion embedding, no LoRA.", "Load it as an embedding.")
    unknown = [k for k in entries if not _FORMATS.fullmatch(k) and not _ALPHA.fullmatch(k)]
    count = f"{len(unknown)} of its {len(entries)} tensors are no part of one" if len(unknown) > 1 else "one is none"
    return BadInput(f"{path} is no LoRA: {count}, such as {key}.", "Give a LoRA's .safetensors file.")


def _layer(
    path: Path, name: str, found: Mapping[str, TensorEntry], alpha: TensorEntry | None, settings: Mapping[str, object]
) -> LoraLayer:
    down, up, mid = found.get("down"), found.get("up"), found.get("mid")
    if down is None or up is None:
        raise BadInput(f"{path}: {name} lacks its {'up' if down else 'down'} matrix.", "Download the file again.")
    rank = down.shape[0] if down.shape else 0
    kernel = (1,) * len(mid.shape[2:]) if mid is not None else down.shape[2:]
    fits = len(down.shape) in (2, 4) and rank > 0 and up.shape[1:2] == (rank,) and math.prod(up.shape[2:]) == 1
    if mid is not None:
        fits = fits and mid.shape[:2] == (rank, rank) and len(mid.shape) == 4 and down.shape[2:] in ((), kernel)
    if not fits or any(e.dtype not in FLOATS for e in found.values()):
        shapes = ", ".join(f"{part} {e.dtype} {list(e.shape)}" for part, e in sorted(found.items()))
        raise BadInput(f"{path}: the matrices of {name} do not fit each other ({shapes}).", "Download the file again.")
    return LoraLayer(name, down, up, mid, _scale(path, name, rank, alpha, settings))


def _scale(path: Path, name: str, rank: int, alpha: TensorEntry | None, settings: Mapping[str, object]) -> float:
    """alpha / rank: 1 where the file says nothing of alpha."""
    if alpha is not None:
        if alpha.elements != 1:
            raise BadInput(f"{path}: alpha of {name} is no single number.", "Download the file again.")
        number = float(read_tensor(alpha, "float32").reshape(()))
        divisor = float(rank)
    else:
        told, divisor = _told_alpha(name, rank, settings)
        number = divisor if told is None else told
    if not math.isfinite(number):
        raise BadInput(f"{path}: alpha of {name} is {number}.", "Download the file again.")
    return number / divisor


def _told_alpha(name: str, rank: int, settings: Mapping[str, object]) -> tuple[float | None, float]:
    """(alpha, what it is divided by) as PEFT's settings have it for a layer; alpha is None where they say nothing."""
    component = next((k.removesuffix(".lora_alpha") for k in settings if k.endswith(".lora_alpha")
                      and name.startswith(f"{k.removesuffix('.lora_alpha')}.")), None)  # fmt: skip
    prefix = f"{component}." if component is not None else ""
    alpha = settings.get(f"{prefix}lora_alpha")
    patterns = settings.get(f"{prefix}alpha_pattern")
    layer = name.removeprefix(prefix)
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).removeprefix("^").removesuffix("$")  # PEFT takes expressions; diffusers writes names
        if layer == plain or layer.endswith(f".{plain}"):
            alpha = value
            break
    square = bool(settings.get(f"{prefix}use_rslora"))
    return (float(alpha) if isinstance(alpha, int | float) else None), math.sqrt(rank) if square else float(rank)


def _settings(path: Path) -> dict[str, object]:
    """PEFT's settings of each component, as diffusers writes them beside the tensors: "unet.lora_alpha", ..."""
    text = read_metadata(path).get(_SETTINGS)
    if text is None:
        return {}
    try:
        settings = json.loads(text)
        if not isinstance(settings, dict):
            raise ValueError("they are no JSON object")
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{path} has settings that cannot be read: {exc}.", "Download the file again.") from exc
    return settings


def _floats(entry: TensorEntry) -> FloatArray:
    values: FloatArray = read_tensor(entry, "float32")
    if not np.isfinite(values).all():
        raise BadInput(f"{entry.file}: {entry.name} holds NaN or infinity.", "Download the file again.")
    return values
