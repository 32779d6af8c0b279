"""A diffusers pipeline whose modules give way to an artifact's sessions."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..core.artifact import Artifact
from ..core.errors import BadInput, UsageError
from ..pipelines.load import open_artifact
from ..runtimes.base import Options
from .configs import config_of, differences, names_in, plain_config
from .opened import Vitrified, open_parts
from .parts import LATE, made_part
from .stand_in import is_stand_in

_OWN = "Wrap the pipeline that the artifact was made from, or compile this one: vitrify.compile_pipeline."


def wrap(
    pipe: Any,
    artifact: str | Path | Artifact,
    *,
    device: str | None = None,
    options: Options | None = None,
    runtime: str | None = None,
    components: Sequence[str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Any:
    """Let an artifact run the components of a diffusers pipeline; the memory of their weights is given back.

    Nothing of the pipeline is changed where it fails. A pipeline that was wrapped before gets the new sessions, and
    those that run nothing any more are closed.

    Args:
        pipe: of any class. artifact: a folder or an artifact; a model's, or a ControlNet's of its own.
        device, options, runtime, say: as `vitrify.load` takes them.
        components: the pipeline's components to wrap, such as ["unet"]; "controlnet.1" is the second of several
            ControlNets. None: all that the artifact has.

    Returns:
        The same pipeline. Its `vitrify` holds the artifact, the placement of each component, and `close`.

    Raises:
        BadInput: no diffusers pipeline, or a component is of another architecture than the artifact's.
        UsageError: a name in `components` that one of the two lacks, or a LoRA that is loaded and not in the artifact.
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    if not isinstance(pipe, DiffusionPipeline):
        raise BadInput(f"{type(pipe).__name__} is no pipeline of diffusers.", "Give one, such as from_pretrained.")
    found = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    chosen = _chosen(pipe, found, components)
    for name, module in chosen.items():
        _check(name, module, found)
    needed = [part for name in chosen for part in names_in(found, name)]
    opened = open_parts(found, needed, [n for n in needed if n != LATE], device, options, runtime, say)
    try:
        made = {name: made_part(type(m), m.config, name, opened, m) for name, m in chosen.items()}
    except BaseException:
        opened.close()
        raise
    chosen.clear()
    pipe.remove_all_hooks()  # offloading moves weights that are no longer there
    for name, module in made.items():
        _put(pipe, name, module)
    before = getattr(pipe, "vitrify", None)
    parts = dict.fromkeys(made, opened)
    pipe.vitrify = before.replaced(parts) if isinstance(before, Vitrified) else Vitrified(parts)
    gc.collect()
    return pipe


def _chosen(pipe: Any, artifact: Artifact, components: Sequence[str] | None) -> dict[str, Any]:
    """Component of the pipeline -> its module, of those that the artifact shall run."""
    asked = list(pipe.components) if components is None else list(components)
    chosen: dict[str, Any] = {}
    for name in asked:
        module = _get(pipe, name)
        if isinstance(module, torch.nn.Module) and names_in(artifact, name):
            chosen[name] = module
        elif components is not None:
            owner = str(artifact.root) if isinstance(module, torch.nn.Module) else type(pipe).__name__
            raise UsageError(
                f"{owner} has no {name} to wrap.",
                f"The pipeline has {', '.join(pipe.components)}; the artifact has {', '.join(artifact.components)}.",
            )
    if not chosen:
        raise BadInput(
            f"{artifact.root} has {', '.join(artifact.components)}: nothing that {type(pipe).__name__} runs.", _OWN
        )
    return chosen


def _get(pipe: Any, name: str) -> Any:
    stem, _, index = name.partition(".")
    module = getattr(pipe, stem, None)
    several = getattr(module, "nets", None)
    if not index:  # a group of ControlNets is no module that one graph stands for
        return module if several is None else None
    return several[int(index)] if several is not None and index.isdigit() and int(index) < len(several) else None


def _put(pipe: Any, name: str, module: torch.nn.Module) -> None:
    stem, _, index = name.partition(".")
    if index:
        getattr(pipe, stem).nets[int(index)] = module
    else:
        setattr(pipe, name, module)


def _check(name: str, module: Any, artifact: Artifact) -> None:
    """Refuse a module that computes something else than the artifact's graph.

    Raises:
        BadInput: another architecture. UsageError: a LoRA is loaded.
    """
    if getattr(module, "peft_config", None) and not is_stand_in(module):
        raise UsageError(
            f"A LoRA is loaded into the pipeline's {name}, and the artifact would run without it.",
            "fuse_lora and unload_lora_weights, then vitrify.compile_pipeline; or unload_lora_weights.",
        )
    theirs = config_of(artifact, name)
    own = plain_config(module)
    different = differences(own, theirs)
    if different:
        key = different[0]
        more = f" (and {', '.join(different[1:4])})" if len(different) > 1 else ""
        raise BadInput(
            f"{name} is another model than the one of {artifact.root}: {key.lstrip('_')} is {own[key]!r} in the "
            f"pipeline, {theirs[key]!r} in the artifact{more}.",
            _OWN,
        )
