"""Checkpoint tensor names -> module parameter names, by the libraries' own mappings.

A file's names are not always its module's: transformers 5 renames on load (`vit.encoder.layer.0.attention.attention.
query.weight` -> `vit.layers.0.attention.q_proj.weight`), prefixes come and go (`text_model.`), diffusers maps its
old attention names (`query` -> `to_q`). There is a `Rename` for each library; `bind_module` picks the one that belongs
to a module. Modules may live on the meta device: only shapes are read.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ..core.safetensors_header import TensorEntry
from .binding import COMPUTED, Bindings, Conversion, Rename, Renaming, Run, bind

if TYPE_CHECKING:
    import torch


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
