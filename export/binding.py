"""Which tensor of a checkpoint is which parameter of a module, checked against the module's shapes.

A rename links the bytes where they lie; what concatenates, chunks or permutes comes as a `Transform`; a name without
an owner, or a parameter without a source, is an error. What becomes what is said by a `Rename`; names.py has one for
each library.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..core.dtypes import NAMES
from ..core.errors import BadInput
from ..core.safetensors_header import TensorEntry, hash_tensor, read_bytes

if TYPE_CHECKING:
    import torch

# What old files hold and new modules compute: nothing is lost when one side lacks it.
COMPUTED = re.compile(r"(^|\.)(position_ids|num_batches_tracked|relative_position_index|rotary_emb\.inv_freq)$")

FOREIGN = "Check that config.json and the weights come from one model; a part that is missing is never made up."

Run = Callable[[Mapping[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Conversion:
    """One of a library's own operations that is more than a rename.

    Attributes:
        target: the first module name that it makes; `run` may make more.
        sources: checkpoint names, in the library's order.
        run: source tensors by checkpoint name -> module tensors by module name. Runs on meta tensors too.
    """

    target: str
    sources: tuple[str, ...]
    run: Run


@dataclass(frozen=True)
class Renaming:
    """What a library makes of a checkpoint's names.

    Attributes:
        names: checkpoint name -> module name, for plain renames (also to names that the module does not have).
        conversions: the rest.
        ignored: checkpoint names that the library drops on purpose.
        tied: groups of module names that share one tensor.
        computed: module names (buffers) that the module computes itself where the checkpoint lacks them.
    """

    names: Mapping[str, str]
    conversions: tuple[Conversion, ...] = ()
    ignored: frozenset[str] = frozenset()
    tied: tuple[tuple[str, ...], ...] = ()
    computed: frozenset[str] = frozenset()


Rename = Callable[[Sequence[str]], Renaming]


@dataclass(frozen=True)
class Transform:
    """One module tensor that has to be computed from checkpoint tensors: the caller writes it to a side file.

    `target` is the module's name, `shape` what `compute` gives, `sources` what it takes, in the library's order.
    """

    target: str
    shape: tuple[int, ...]
    sources: tuple[TensorEntry, ...]
    run: Run = field(repr=False, compare=False)

    def compute(self) -> torch.Tensor:
        """Read the sources and run the library's operation; the memory of this one tensor, a few times over.

        Raises:
            BadInput: the library refuses the tensors, or the file changed.
            DiskError: the disk failed.
        """
        tensors = {entry.name: load_tensor(entry) for entry in self.sources}
        return _run(self.run, tensors, self.target)[self.target].contiguous()


@dataclass(frozen=True)
class Bindings:
    """Where every parameter and persistent buffer of a module comes from. Each name is in one of the first three.

    Attributes:
        linked: module name -> the tensor whose bytes it is, in the module's shape or with sizes of 1 more or less.
        transforms: module name -> how it is computed (for a tied name, its partner's).
        computed: buffers that keep the value that the module computed when it was built.
        ignored: checkpoint names that the library drops.
        compared: tensors that the model ties were read and found equal: the bindings hold for these very bytes only.
    """

    linked: Mapping[str, TensorEntry]
    transforms: Mapping[str, Transform]
    computed: frozenset[str]
    ignored: frozenset[str]
    compared: bool = False


def bind(
    module_names_to_shapes: Mapping[str, tuple[int, ...]], checkpoint: Mapping[str, TensorEntry], rename: Rename
) -> Bindings:
    """Find the source of every module tensor.

    Args:
        module_names_to_shapes: the module's state dict: parameters and persistent buffers.
        checkpoint: from `open_checkpoint`.
        rename: says what becomes what.

    Raises:
        BadInput: a checkpoint tensor without an owner, a module tensor without a source, a shape that does not fit,
            two sources for one tensor, or tied tensors that differ. Each names the tensor.
    """
    shapes = module_names_to_shapes
    renaming = rename(list(checkpoint))
    linked: dict[str, TensorEntry] = {}
    for name, target in renaming.names.items():
        if target in linked:
            what = f"Both {linked[target].name!r} and {name!r} of the checkpoint are the model's {target!r}."
            raise BadInput(what, "Remove one of them from the file.")
        if target in shapes:
            linked[target] = checkpoint[name]
    made = [transform for conversion in renaming.conversions for transform in _transforms(conversion, checkpoint)]
    transforms = {transform.target: transform for transform in made}
    if linked.keys() & transforms.keys():
        twice = min(linked.keys() & transforms.keys())
        raise BadInput(f"{twice!r} is in the checkpoint both converted and not.", "Remove one of them from the file.")
    compared = any(sum(name in linked for name in group) > 1 for group in renaming.tied)
    for group in renaming.tied:
        _share(group, shapes, linked, transforms)
    known = renaming.ignored.union(*(conversion.sources for conversion in renaming.conversions))
    unowned = [name for name in checkpoint if name not in known and renaming.names.get(name) not in shapes]
    unowned += [name for name in transforms if name not in shapes]
    found = linked.keys() | transforms.keys()
    missing = [name for name in shapes if name not in found and name not in renaming.computed]
    if missing or unowned:
        raise _mismatch(missing, unowned, shapes, checkpoint)
    for name, expected in shapes.items():
        given = linked[name].shape if name in linked else transforms[name].shape if name in transforms else expected
        if not _same_layout(given, expected):
            origin = f"{linked[name].name!r} in {linked[name].file}" if name in linked else "the converted tensor"
            what = f"{name!r} of the model has the shape {list(expected)}, {origin} has {list(given)}."
            raise BadInput(what, "Check that config.json belongs to these weights.")
    return Bindings(linked, transforms, frozenset(shapes.keys() - found), renaming.ignored, compared)


def _same_layout(given: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    """Whether one's bytes are the other's: sizes of 1 move no element, any other difference may be a transposition."""
    return given == expected or [d for d in given if d != 1] == [d for d in expected if d != 1]


def _transforms(conversion: Conversion, checkpoint: Mapping[str, TensorEntry]) -> list[Transform]:
    """What a conversion makes, found by running it on tensors without data."""
    import torch

    sources = tuple(checkpoint[name] for name in conversion.sources)
    hollow = {entry.name: torch.empty(entry.shape, dtype=_torch_dtype(entry), device="meta") for entry in sources}
    made = _run(conversion.run, hollow, conversion.target)
    return [Transform(name, tuple(tensor.shape), sources, conversion.run) for name, tensor in made.items()]


def _run(run: Run, tensors: Mapping[str, torch.Tensor], target: str) -> dict[str, torch.Tensor]:
    try:
        return run(tensors)
    except Exception as exc:  # the library's operations raise whatever torch raises
        given = ", ".join(f"{name!r} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise BadInput(f"{target!r} cannot be made from {given}: {exc}", FOREIGN) from exc


def _share(
    group: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    linked: dict[str, TensorEntry],
    transforms: dict[str, Transform],
) -> None:
    """Give the members of a tied group that the checkpoint lacks the tensor of one that it has."""
    present = [name for name in group if name in linked]
    made = [name for name in group if name in transforms]
    # A graph has one initializer for the group: files that hold two different tensors would lose one without a word.
    if len(present) > 1 and len({(linked[name].shape, hash_tensor(linked[name])) for name in present}) > 1:
        what = f"config.json ties {' and '.join(map(repr, present))}, but the checkpoint's tensors differ."
        raise BadInput(what, "Set tie_word_embeddings to false in config.json if they were trained apart.")
    for name in group:
        if name in shapes and name not in linked and name not in transforms:
            if present:
                linked[name] = linked[present[0]]
            elif made:
                transforms[name] = transforms[made[0]]


def _mismatch(
    missing: Sequence[str],
    unowned: Sequence[str],
    shapes: Mapping[str, tuple[int, ...]],
    checkpoint: Mapping[str, TensorEntry],
) -> BadInput:
    def some(names: Sequence[str]) -> str:
        return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    files = sorted({str(entry.file) for entry in checkpoint.values()}) or ["The checkpoint"]
    said = []
    if missing:
        said.append(f"lacks {some(missing)}, which the model needs (first: {list(shapes[missing[0]])})")
    if unowned:
        said.append(f"holds {some(unowned)}, which the model does not have")
    return BadInput(f"{', '.join(files)} {' and '.join(said)}.", FOREIGN)


def load_tensor(entry: TensorEntry) -> torch.Tensor:
    """The tensor as torch has it, in its stored dtype and shape, in memory of its own.

    Raises:
        BadInput: torch lacks the dtype, or the file changed.
        DiskError: the disk failed.
    """
    import torch

    dtype = _torch_dtype(entry)
    if not math.prod(entry.shape):
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(read_bytes(entry), dtype=dtype).reshape(entry.shape)


def _torch_dtype(entry: TensorEntry) -> torch.dtype:
    import torch

    dtype = getattr(torch, NAMES.get(entry.dtype, ""), None)
    if not isinstance(dtype, torch.dtype):
        what = f"Tensor {entry.name!r} in {entry.file} is {entry.dtype}, which torch does not have."
        raise BadInput(what, "Use a checkpoint that is not quantized.")
    return dtype
