"""Where a model comes from: a diffusers folder, a transformers folder, or a hub id; read without torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from ..core.safetensors_header import TensorEntry, open_checkpoint
from .families import classifier, pipelines
from .spec import ComponentSpec


@dataclass(frozen=True)
class SourceComponent:
    """A component of the source: its spec, its config.json and where each of its checkpoint's tensors lies."""

    spec: ComponentSpec
    config: dict[str, Any]
    config_path: Path
    checkpoint: dict[str, TensorEntry]
    variant: str | None

    def bytes(self) -> int:
        return sum(entry.length for entry in self.checkpoint.values())


@dataclass(frozen=True)
class Source:
    """A model that can be exported.

    given: as the user named it. family: sd or image-classification. index: model_index.json or config.json.
    """

    folder: Path
    given: str
    family: str
    architecture: str
    index: dict[str, Any]
    components: tuple[SourceComponent, ...]
    revision: str | None = None

    def bytes(self) -> int:
        """Bytes of weights, each tensor once."""
        seen = {(e.file, e.offset): e.length for c in self.components for e in c.checkpoint.values()}
        return sum(seen.values())


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
    if (folder / "model_index.json").is_file():
        return _pipeline(folder, given, revision, variant)
    if (folder / "config.json").is_file():
        return _classifier(folder, given, revision, variant)
    raise BadInput(
        f"{given} holds neither model_index.json nor config.json.",
        "Give the folder of a diffusers or transformers model, as save_pretrained writes it.",
    )


def _pipeline(folder: Path, given: str, revision: str | None, variant: str | None) -> Source:
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if name not in pipelines.PIPELINES:
        raise BadInput(f"{given} is a {name}, which is not supported.", f"Supported: {', '.join(pipelines.PIPELINES)}.")
    family, specs = pipelines.PIPELINES[name]
    opened = tuple(_component(folder, spec, variant) for spec in specs)
    pipelines.CHECKS[family](given, {c.spec.name: c.config for c in opened})
    return Source(folder, given, family, name, index, opened, revision)


def _classifier(folder: Path, given: str, revision: str | None, variant: str | None) -> Source:
    config = read_json(folder / "config.json")
    kind, names = config.get("model_type"), config.get("architectures") or []
    fits = any(str(n).endswith("ForImageClassification") for n in names)
    if kind not in classifier.MODEL_TYPES or not fits:
        raise BadInput(
            f"{given} is a {', '.join(map(str, names)) or kind}, which is not supported.",
            f"Supported: {', '.join(pipelines.PIPELINES)}, and ...ForImageClassification of "
            f"{', '.join(classifier.MODEL_TYPES)}.",
        )
    if not (folder / "preprocessor_config.json").is_file():
        raise BadInput(
            f"{given} has no preprocessor_config.json, so its pictures cannot be prepared as in training.",
            "Copy that file from the model's page, or save the model's image processor into the folder.",
        )
    opened = tuple(_component(folder, spec, variant) for spec in classifier.CLASSIFIER)
    return Source(folder, given, "image-classification", str(names[0]), config, opened, revision)


def _component(folder: Path, spec: ComponentSpec, variant: str | None) -> SourceComponent:
    path = folder / spec.folder / "config.json"
    config = read_json(path)
    try:
        for described in (spec.inputs, spec.outputs, spec.example, spec.checks, spec.narrow):
            described(config)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as exc:
        raise BadInput(
            f"{path} lacks an entry or has a wrong one ({type(exc).__name__}: {exc}).",
            "Check that config.json is the model's own.",
        ) from exc
    checkpoint = open_checkpoint(folder / spec.folder, (spec.stem,), variant)
    return SourceComponent(spec, config, path, checkpoint, variant)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the model.

    Raises:
        BadInput: missing, not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError as exc:
        raise BadInput(f"{path} is missing.", "Download the model again, whole.") from exc
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise BadInput(f"{path} is not readable JSON: {exc}.", "Download the model again.") from exc
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds no JSON object.", "Download the model again.")
    return data
