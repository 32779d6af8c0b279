"""torch tensors to numpy arrays and back, without a copy where none is needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..core.errors import BadInput, UsageError
from ..core.tensors import Array, TensorSpec


def to_array(name: str, value: Any, spec: TensorSpec) -> Array:
    """A tensor or a number in the dtype of an input. On the CPU, in that dtype already, it is the tensor's own memory.

    Raises:
        UsageError: gradients are wanted of it, which a compiled graph does not give.
        BadInput: numpy lacks the input's dtype.
    """
    wanted = spec.dtype.value
    if wanted == "bfloat16":
        raise BadInput(f"{name} is a bfloat16 input, which numpy does not have.", "Export the model in float32.")
    if not isinstance(value, torch.Tensor):
        return np.asarray(value, dtype=wanted)
    if value.requires_grad and torch.is_grad_enabled():
        raise UsageError(
            f"Gradients are wanted of {name}, and a compiled graph gives none.",
            "Call the pipeline under torch.no_grad(), or keep that component in PyTorch (components=...).",
        )
    array: Array = value.detach().to("cpu", getattr(torch, wanted)).numpy()
    return array


def to_tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    """An output on the device of `like`; floats in its dtype, where that is one of floats."""
    owned = array if array.flags.writeable else array.copy()
    tensor = torch.from_numpy(owned)
    floats = tensor.is_floating_point() and like.is_floating_point()
    return tensor.to(like.device, like.dtype if floats else tensor.dtype)


def fit_rank(name: str, array: Array, spec: TensorSpec, batch: int) -> Array:
    """A number for all pictures (a timestep, a guidance scale) in the rank of its input: [] or [batch] or [1].

    diffusers takes either for both; a graph takes one. What has more than one dimension comes back as it is.

    Raises:
        BadInput: each picture has a number of its own, and the graph takes one for all.
    """
    if array.ndim > 1 or len(spec.shape) > 1:
        return array
    if not spec.shape:
        if array.size and (array == array.flat[0]).all():
            return np.asarray(array.flat[0])
        raise BadInput(
            f"{name} is {array.tolist()}: one for each picture, and the graph takes one for all of them.",
            "Draw pictures that need different ones one after another.",
        )
    size = spec.shape[0] if isinstance(spec.shape[0], int) else batch
    return np.ascontiguousarray(np.broadcast_to(array, (size,))) if array.size == 1 else array
