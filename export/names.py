"""Checkpoint tensor names -> module parameter names, by the libraries' own mappings.

A file's names are not always its module's: transformers 5 renames on load (`vit.encoder.layer.0.attention.attention.
query.weight` -> `vit.layers.0.attention.q_proj.weight`), prefixes come and go (`text_model.`), diffusers maps its
old attention names (`query` -> `to_q`). A rename links the bytes where they lie; what concatenates, chunks or permutes
comes as a `Transform`; a name without an owner, or a parameter without a source, is an error.
A `Rename` (one for each library) says what becomes what, `bind` checks it against the shapes, `bind_module` picks the
rename that belongs to a module. Modules may live on the meta device: only shapes are read.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput
from ..core.safetensors_header import TensorEntry, hash_tensor, read_bytes

if TYPE_CHECKING:
    import torch

# What old files hold and new modules compute: nothing is lost when one side lacks it.
COMPUTED = re.compile(r"(^|\.)(position_ids|num_batches_tracked|relative_position_index|rotary_emb\.inv_freq)$")

FOREIGN = "Check that config.json and the weights come from one model; a part that is missing is never made up."

# safetensors dtype -> torch's name for it.
TORCH_DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F16": "float16",
    "BF16": "bfloat16", "F32": "float32", "F64": "float64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
    "U16": "uint16", "U32": "uint32", "U64": "uint64", "C64": "complex64",
}  # fmt: skip

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
        rename: from `transformers_names`, `diffusers_names` or `plain_names`.

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


def bind_module(module: torch.nn.Module, checkpoint: Mapping[str, TensorEntry]) -> Bindings:
    """`bind` with a module's own shapes and its library's names.

    Raises:
        BadInput: as `bind`.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if hasattr(module, "base_model_prefix"):
        rename = transformers_names(module)
    elif hasattr(module, "_fix_state_dict_keys_on_load"):
        rename = diffusers_names(module)
    else:
        rename = plain_names(module)
    return bind(shapes, checkpoint, rename)


def plain_names(module: torch.nn.Module) -> Rename:
    """Names of a plain torch module: those of its state dict."""

    def rename(names: Sequence[str]) -> Renaming:
        return _renaming(module, {name: name for name in names})

    return rename


def diffusers_names(module: torch.nn.Module) -> Rename:
    """Names of a diffusers model, with the attention names of files from before diffusers 0.17."""
    model: Any = module

    def rename(names: Sequence[str]) -> Renaming:
        # diffusers moves the values of a state dict to new keys, in place; given names for values, it says where from.
        moved = {name: name for name in names}
        model._fix_state_dict_keys_on_load(moved)
        unexpected = model._keys_to_ignore_on_load_unexpected or ()
        return _renaming(module, {old: new for new, old in moved.items()}, unexpected=unexpected)

    return rename


def transformers_names(module: torch.nn.Module) -> Rename:
    """Names of a transformers model: `transformers.conversion_mapping` where there is one (5.0 on), else 4's rules."""
    try:
        mapping = importlib.import_module("transformers.conversion_mapping")
    except ModuleNotFoundError as exc:
        if exc.name != "transformers.conversion_mapping":
            raise
        return _transformers_4(module)
    return _transformers_5(module, mapping)


def _transformers_5(module: torch.nn.Module, mapping: Any) -> Rename:
    """As `transformers.core_model_loading.convert_and_load_state_dict_in_model` names tensors, without loading any."""
    loading: Any = importlib.import_module("transformers.core_model_loading")
    model: Any = module

    def rename(names: Sequence[str]) -> Renaming:
        state = model.state_dict()
        # Anew on each call: some of its entries remember what they have seen.
        rules = mapping.get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
        by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
        plain: dict[str, str] = {}
        collected: dict[str, list[tuple[str, str]]] = {}
        for name in sorted(names, key=loading.dot_natural_key):
            target, pattern = loading.rename_source_key(name, renamings, converters, model.base_model_prefix, state)
            if target not in state and name in state:
                target, pattern = loading.rename_source_key(name, [], [], model.base_model_prefix, state)
            if pattern is not None and target in state:
                collected.setdefault(target, []).append((pattern, name))
            else:
                plain[name] = target
        conversions = tuple(
            Conversion(target, tuple(name for _, name in rows), _converter(model, by_pattern[rows[0][0]], target, rows))
            for target, rows in collected.items()
        )
        tied: dict[str, list[str]] = {}
        for target, source in getattr(model, "all_tied_weights_keys", {}).items():
            tied.setdefault(source, [source]).append(target)
        return _renaming(module, plain, conversions, model._keys_to_ignore_on_load_unexpected or (), tied.values())

    return rename


def _converter(model: Any, rule: Any, target: str, rows: Sequence[tuple[str, str]]) -> Run:
    """A transformers `WeightConverter` as a function of the tensors that it collects."""

    def run(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        converter = deepcopy(rule)
        for pattern, name in rows:
            # The library takes a function for a tensor that is read late.
            converter.add_tensor(target, name, pattern, lambda tensor=tensors[name]: tensor)
        made = converter.convert(target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    return run


def _transformers_4(module: torch.nn.Module) -> Rename:
    """As `PreTrainedModel._load_pretrained_model` of transformers 4.57 names tensors."""
    model: Any = module

    def rename(names: Sequence[str]) -> Renaming:
        prefix = model.base_model_prefix
        has = bool(prefix) and any(name.startswith(prefix) for name in names)
        expects = bool(prefix) and hasattr(model, prefix)
        key_mapping = model._checkpoint_conversion_mapping or None
        try:
            renamed = model._get_key_renaming_mapping(
                list(names), key_mapping, has and not expects, expects and not has
            )
        except ValueError:  # a head beside names of no base model: as they are, so that `bind` can say which are wrong
            renamed = {}
        model.tie_weights()  # after a build on meta the shared tensors are separate objects
        # What transformers drops from its mapping (a base model's file with a head) keeps its name and is reported.
        plain = {name: renamed.get(name, name) for name in names}
        return _renaming(module, plain, (), model._keys_to_ignore_on_load_unexpected or ())

    return rename


def _renaming(
    module: torch.nn.Module,
    names: Mapping[str, str],
    conversions: tuple[Conversion, ...] = (),
    unexpected: Iterable[str] = (),
    tied: Iterable[Sequence[str]] = (),
) -> Renaming:
    """Add what the module itself tells: shared tensors, and buffers that are computed rather than loaded.

    `unexpected`: the library's regular expressions for names that it drops. `tied`: groups that it declares.
    """
    state = module.state_dict(keep_vars=True)
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    patterns = [re.compile(pattern) for pattern in unexpected]
    ignored = frozenset(
        name
        for name, target in names.items()
        if target not in state
        and (target in buffers or COMPUTED.search(target) or any(pattern.search(target) for pattern in patterns))
    )
    shared: dict[int, list[str]] = {}
    for name, tensor in state.items():
        shared.setdefault(id(tensor), []).append(name)
    groups = [tuple(group) for group in (*tied, *shared.values()) if len(group) > 1]
    computed = frozenset(name for name in state if name in buffers and COMPUTED.search(name))
    return Renaming(names, conversions, ignored, tuple(groups), computed)


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

    dtype = getattr(torch, TORCH_DTYPES.get(entry.dtype, ""), None)
    if not isinstance(dtype, torch.dtype):
        what = f"Tensor {entry.name!r} in {entry.file} is {entry.dtype}, which torch does not have."
        raise BadInput(what, "Use a checkpoint that is not quantized.")
    return dtype
