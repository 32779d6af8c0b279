"""Where a model comes from: a diffusers folder, a transformers folder, or a hub id; read without torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import BadInput, UsageError
from ..core.json_file import read_json_object
from ..core.safetensors_header import TensorEntry, open_checkpoint
from ..pipelines.control import is_residual
from ..pipelines.settings import DENOISERS
from .families import classifier, controlnet, pipelines
from .spec import ComponentSpec

PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class SourceComponent:
    """A component of the source: its spec, its config.json and where each of its checkpoint's tensors lies.

    convert: of a checkpoint in another layout, its tensors as the module has them; given the arguments of `tensors`.
    file: the single checkpoint that holds the component.
    """

    spec: ComponentSpec
    config: dict[str, Any]
    config_path: Path
    checkpoint: dict[str, TensorEntry]
    variant: str | None
    convert: Callable[[Path, bool], Mapping[str, TensorEntry]] | None = None
    file: Path | None = None

    def tensors(self, side: Path, alone: bool = False) -> Mapping[str, TensorEntry]:
        """Every tensor under the name that the component's library saves it as.

        Args:
            side: a folder for what has to be copied; made only when it is needed.
            alone: copy a single checkpoint's tensors too that could be referred to, where it cannot be linked.
        """
        return self.checkpoint if self.convert is None else self.convert(side, alone)


@dataclass(frozen=True)
class Source:
    """A model that can be exported.

    given: as the user named it. family: sd or image-classification. index: model_index.json or config.json.
    revision: the commit, of a hub id. variant: of the weights, None for the plain ones.
    file: the single checkpoint that it was read from, if it was one. settings: what the user said of it, by option;
    see also changed.py.
    notes: what of it is copied, left out or taken for granted, one line each.
    """

    folder: Path
    given: str
    family: str
    architecture: str
    index: dict[str, Any]
    components: tuple[SourceComponent, ...]
    revision: str | None = None
    variant: str | None = None
    file: Path | None = None
    settings: Mapping[str, str | float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What an artifact of it is called: the folder's or the repository's name, with nothing but word characters,
        dots and dashes."""
        path = Path(self.given)
        last = path.resolve().name if path.exists() else self.given.rstrip("/").split("/")[-1]
        last = path.stem if self.file is not None else last
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
            if root == "model_index.json":
                return _pipeline(folder, given, index)
            return (_controlnet if controlnet.is_controlnet(index) else _classifier)(folder, given, index)
    raise BadInput(
        f"{given} holds neither model_index.json nor config.json.",
        "Give the folder of a diffusers or transformers model, as save_pretrained writes it.",
    )


def with_residuals(source: Source) -> Source:
    """The source, its denoiser with the residuals of a ControlNet as further inputs.

    Raises:
        UsageError: it has no denoiser.
    """
    if not any(part.spec.name in DENOISERS for part in source.components):
        raise UsageError(f"{source.given} has no denoiser, so it takes no ControlNet.", "Leave --control out.")
    changed = (
        replace(part, spec=controlnet.with_control(part.spec)) if part.spec.name in DENOISERS else part
        for part in source.components
    )
    return replace(source, components=tuple(changed))


def control_settings(source: Source) -> dict[str, Any]:
    """What the manifest says of a source whose denoiser takes residuals."""
    part = next(part for part in source.components if part.spec.name in DENOISERS)
    return {"residuals": sum(map(is_residual, part.spec.inputs(part.config)))}


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
    if controlnet.is_controlnet(index):
        controlnet.check_controlnet(given, index)
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
    family, specs = pipelines.components_of(index)
    parts = tuple(
        described_part(folder, spec) for spec in specs if not (spec.optional and _is_left_out(index, spec.folder))
    )
    if family in pipelines.CHECKS:
        pipelines.CHECKS[family](given, {spec.name: config for spec, config, _ in parts})
    return Described(family, name, index, parts)


def _is_left_out(index: Mapping[str, Any], component: str) -> bool:
    """Whether a pipeline was saved without one of its components."""
    value = index.get(component)
    return value is None or not any(value)


def _classifier(folder: Path, given: str, index: dict[str, Any]) -> Described:
    if not (folder / PREPROCESSOR).is_file():
        raise BadInput(
            f"{given} has no {PREPROCESSOR}, so its pictures cannot be prepared as in training.",
            "Copy that file from the model's page, or save the model's image processor into the folder.",
        )
    parts = tuple(described_part(folder, spec) for spec in classifier.CLASSIFIER)
    return Described("image-classification", str(next(iter(index["architectures"]))), index, parts)


def _controlnet(folder: Path, given: str, index: dict[str, Any]) -> Described:
    parts = tuple(described_part(folder, spec) for spec in controlnet.controlnet_specs(index))
    return Described("controlnet", str(index["_class_name"]), index, parts)


def described_part(folder: Path, spec: ComponentSpec) -> tuple[ComponentSpec, dict[str, Any], Path]:
    """A component's spec, its config.json and where that lies, in a model's folder.

    Raises:
        BadInput: the file is missing or broken, or lacks what the spec reads of it.
    """
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
