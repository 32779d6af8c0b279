"""A diffusers pipeline made of an artifact alone: no weights of torch are loaded."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers

from ..core.artifact import Artifact
from ..core.errors import BadArtifact, BadInput, UsageError
from ..core.json_file import read_json_object
from ..pipelines.load import open_artifact
from ..runtimes.base import Options
from .configs import class_of, config_of, made_config, names_in
from .opened import Opened, Vitrified, open_parts
from .parts import LATE, made_part

_INDEX = "model_index.json"


def pipeline(
    artifact: str | Path | Artifact,
    cls: type | str | None = None,
    *,
    device: str | None = None,
    options: Options | None = None,
    runtime: str | None = None,
    say: Callable[[str], None] | None = None,
    **given: Any,
) -> Any:
    """A diffusers pipeline over an artifact's sessions, with the scheduler and tokenizers that lie in its folder.

    Args:
        cls: a pipeline class of diffusers or its name; None: the one that the folder's model_index.json names.
        device, options, runtime, say: as `vitrify.load` takes them.
        given: components and settings of that class that the artifact has not, or that shall take their place, such as
            controlnet=..., scheduler=..., safety_checker=....

    Raises:
        UsageError: something is given that the class does not take.
        BadInput: no such class, or the class needs a component that neither the artifact nor `given` has.
        BadArtifact: the folder lacks a file, or names no class of diffusers or transformers.
        VitrifyError: the artifact, the device or the runtime cannot be used.
    """
    found = artifact if isinstance(artifact, Artifact) else open_artifact(artifact)
    index = read_json_object(found.root / _INDEX) if (found.root / _INDEX).is_file() else {}
    kind = _pipeline_class(cls or index.get("_class_name"), found)
    parameters = {k: p for k, p in inspect.signature(kind.__init__).parameters.items() if k != "self"}
    unknown = [name for name in given if name not in parameters]
    if unknown:
        raise UsageError(f"{kind.__name__} takes no {', '.join(unknown)}.", f"It takes {', '.join(parameters)}.")
    ours = [name for name in parameters if name not in given and names_in(found, name)]
    if not ours:
        raise BadInput(
            f"{found.root} has {', '.join(found.components)}: nothing that {kind.__name__} runs.",
            "Give the pipeline class of the model that the artifact was made from.",
        )
    needed = [part for name in ours for part in names_in(found, name)]
    opened = open_parts(found, needed, [n for n in needed if n != LATE], device, options, runtime, say)
    try:
        values = dict(given)
        for name, parameter in parameters.items():
            if name not in given:
                values |= _value(name, parameter, kind, found, index, opened if name in ours else None)
        pipe = kind(**values)
    except BaseException:
        opened.close()
        raise
    pipe.register_to_config(_name_or_path=str(found.root))
    pipe.vitrify = Vitrified(dict.fromkeys(ours, opened))
    return pipe


def _pipeline_class(named: Any, artifact: Artifact) -> Any:
    kind = getattr(diffusers, named, None) if isinstance(named, str) else named
    if not (inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise BadInput(
            f"{named!r} is no pipeline class of diffusers {diffusers.__version__}.",
            f"Give one that runs {artifact.pipeline.get('family')} models, such as cls=StableDiffusionPipeline.",
        )
    return kind


def _value(
    name: str,
    parameter: inspect.Parameter,
    kind: Any,
    artifact: Artifact,
    index: Mapping[str, Any],
    opened: Opened | None,
) -> dict[str, Any]:
    """What the class gets as `name`: a stand-in, what lies in the folder, its own default, or nothing at all."""
    if opened is not None:
        cls = class_of(artifact, name, index)
        return {name: made_part(cls, made_config(cls, config_of(artifact, name)), name, opened)}
    told = index.get(name)
    if isinstance(told, list) and len(told) == 2:
        library, class_name = told
        if isinstance(library, str) and isinstance(class_name, str) and (artifact.root / name).is_dir():
            return {name: _loaded(name, library, class_name, artifact)}
    elif told is not None:
        return {name: told}
    if name == "requires_safety_checker":
        return {name: False}  # nothing to check with is in the folder
    if parameter.default is not inspect.Parameter.empty:
        return {}
    if name in kind._optional_components:
        return {name: None}
    raise BadInput(f"{kind.__name__} needs a {name}, and {artifact.root} has none.", f"Give it: {name}=....")


def _loaded(name: str, library: str, class_name: str, artifact: Artifact) -> Any:
    """A scheduler or a tokenizer from the artifact's folder."""
    cls = (
        getattr(importlib.import_module(library), class_name, None)
        if library in ("diffusers", "transformers")
        else None
    )
    if cls is None:
        raise BadArtifact(
            f"{artifact.root / _INDEX} says that {name} is a {class_name} of {library}, which is not there.",
            f"Give it: {name}=....",
        )
    try:
        return cls.from_pretrained(str(artifact.root / name), local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise BadArtifact(
            f"{artifact.root / name} does not load as a {class_name}: {exc}.", "Copy the whole folder again."
        ) from exc
