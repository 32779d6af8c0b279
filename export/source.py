"""Where a model comes from: a diffusers folder, a transformers folder, or a hub id; read without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.json_file import read_json_object
from ..core.safetensors_header import TensorEntry, open_checkpoint
from .families import classifier, pipelines
from .spec import ComponentSpec

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class SourceComponent:
    """A component of the source: its spec, its config.json and where each of its checkpoint's tensors lies."""

    spec: ComponentSpec
    config: dict[str, Any]
    config_path: Path
    checkpoint: dict[str, TensorEntry]
    variant: str | None


@dataclass(frozen=True)
class Source:
    """A model that can be exported.

    given: as the user named it. family: sd or image-classification. index: model_index.json or config.json.
    revision: the commit, of a hub id. variant: of the weights, None for the plain ones.
    """

    folder: Path
    given: str
    family: str
    architecture: str
    index: dict[str, Any]
    components: tuple[SourceComponent, ...]
    revision: str | None = None
    variant: str | None = None

    @property
    def name(self) -> str:
        """What an artifact of it is called: the folder's or the repository's name, with nothing but word characters,
        dots and dashes."""
        path = Path(self.given)
        last = path.resolve().name if path.exists() else self.given.rstrip("/").split("/")[-1]
        return re.sub(r"[^\w.-]+", "-", last).strip(".-") or "model"


@dataclass(frozen=True)
class Described:
    """What a model's configs say of it; its weights need not be there yet."""

    family: str
    architecture: str
    index: dict[str, Any]
    parts: tuple[tuple[ComponentSpec, dict[str, Any], Path], ...]


def open_source(folder: Path, *, given: str = "", revision: str | None = None, variant: str | None = None) -> Source:
    """Recognize a model's folder and read its configs and the headers of its checkpoints.

    Raises:
        BadInput: no such folder, not a model, a class that is not supported (names those that are), a broken
            config or checkpoint, a pickle.
    """
    given = given or str(folder)
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise BadInput(f"{given} {kind}.", "Give the folder of a diffusers or transformers model, or a hub id.")
    found = describe_source(folder, given)
    opened = tuple(
        SourceComponent(spec, config, path, open_checkpoint(folder / spec.folder, (spec.stem,), variant), variant)
        for spec, config, path in found.parts
    )
    return Source(folder, given, found.family, found.architecture, found.index, opened, revision, variant)


def describe_source(folder: Path, given: str) -> Described:
    """Read a model's configs and check that it can be exported; its weights are not looked at.

    Raises:
        BadInput: not a model, not supported, or a broken config.
    """
    for root in ("model_index.json", "config.json"):
        if (folder / root).is_file():
            index = read_json_object(folder / root)
            check_supported(given, root, index)
            return (_pipeline if root == "model_index.json" else _classifier)(folder, given, index)
    raise BadInput(
        f"{given} holds neither model_index.json nor config.json.",
        "Give the folder of a diffusers or transformers model, as save_pretrained writes it.",
    )


def check_supported(given: str, root: str, index: Mapping[str, Any]) -> None:
    """Refuse a model by the class that it names.

    Args:
        root: model_index.json or config.json. index: its content.

    Raises:
        BadInput: the class is not supported; names those that are.
    """
    if root == "model_index.json":
        name = str(index.get("_class_name"))
        if name not in pipelines.PIPELINES:
            raise BadInput(
                f"{given} is a {name}, which is not supported.", f"Supported: {', '.join(pipelines.PIPELINES)}."
            )
        return
    names = index.get("architectures") or []
    fits = any(str(n).endswith("ForImageClassification") for n in names)
    if index.get("model_type") not in classifier.MODEL_TYPES or not fits:
        raise BadInput(
            f"{given} is a {', '.join(map(str, names)) or index.get('model_type')}, which is not supported.",
            f"Supported: {', '.join(pipelines.PIPELINES)}, and ...ForImageClassification of "
            f"{', '.join(classifier.MODEL_TYPES)}.",
        )


def _pipeline(folder: Path, given: str, index: dict[str, Any]) -> Described:
    name = str(index["_class_name"])
    family, specs = pipelines.PIPELINES[name]
    parts = tuple(_part(folder, spec) for spec in specs)
    pipelines.CHECKS[family](given, {spec.name: config for spec, config, _ in parts})
    return Described(family, name, index, parts)


def _classifier(folder: Path, given: str, index: dict[str, Any]) -> Described:
    if not (folder / PREPROCESSOR).is_file():
        raise BadInput(
            f"{given} has no {PREPROCESSOR}, so its pictures cannot be prepared as in training.",
            "Copy that file from the model's page, or save the model's image processor into the folder.",
        )
    parts = tuple(_part(folder, spec) for spec in classifier.CLASSIFIER)
    return Described("image-classification", str(next(iter(index["architectures"]))), index, parts)


def _part(folder: Path, spec: ComponentSpec) -> tuple[ComponentSpec, dict[str, Any], Path]:
    path = folder / spec.folder / "config.json"
    config = read_json_object(path)
    try:
        for described in (spec.inputs, spec.outputs, spec.example, spec.checks, spec.narrow):
            described(config)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as exc:
        raise BadInput(
            f"{path} lacks an entry or has a wrong one ({type(exc).__name__}: {exc}).",
            "Check that config.json is the model's own.",
        ) from exc
    return spec, config, path
