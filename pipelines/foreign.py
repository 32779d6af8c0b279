"""Folders that Optimum (and Optimum Intel) exported: known by their layout, opened with a manifest made on the fly."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

from ..core.artifact import Artifact, Component, WeightFile, check_inside
from ..core.dtypes import ONNX_TYPES
from ..core.errors import BadArtifact, BadInput
from ..core.json_file import read_json_object
from ..core.registry import load_runtime, runtime_for
from ..core.tensors import TensorSpec
from ..runtimes.initializers import external_initializers, initializers
from .families import FAMILIES, family_of_class, pipeline_settings
from .settings import classifier_settings

_GRAPHS = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}
"""Format -> the name of each of its graphs; of a folder with both the first is opened."""

_INDEX = "model_index.json"
_OPTIMUM = re.compile(r"^(ORT|OV)(?=[A-Z])")  # how Optimum and Optimum Intel call their forms of diffusers' classes
_AGAIN = "Copy the whole folder again."
_FLOATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}  # dtype -> recipe, where all is of one
# TensorProto.DataType, and an IR's element types, that weights are stored in
_ONNX_TYPES = ONNX_TYPES | {17: "float8", 18: "float8", 19: "float8", 20: "float8", 21: "uint4", 22: "int4"}
_IR_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "u8": "uint8"}
_IR_TYPES |= {"i4": "int4", "u4": "uint4", "nf4": "nf4", "f8e4m3": "float8", "f8e5m2": "float8"}


def is_foreign(root: Path) -> bool:
    """Whether the folder looks like an export to ONNX or OpenVINO that another tool wrote."""
    return _format(root) is not None


def _format(root: Path) -> str | None:
    for format, graph in _GRAPHS.items():
        denoisers = any((root / kind.denoiser / graph).is_file() for kind in FAMILIES.values())
        if denoisers or ((root / graph).is_file() and (root / "config.json").is_file()):
            return format
    return None


def foreign_artifact(root: Path) -> Artifact:
    """A manifest in memory; every proof is `not run`.

    Raises:
        BadArtifact: a config is missing or broken, or a graph does not load.
        BadInput: a config lacks something or asks for what is not supported.
        MissingDependency: the runtime that reads the graphs is not installed.
    """
    format = _format(root)
    if format is None:
        raise BadArtifact(f"{root} holds no graph that is known.", f"Graphs are {', '.join(_GRAPHS.values())}.")
    graph = _GRAPHS[format]
    if (root / _INDEX).is_file():
        index = _json(root / _INDEX)
        architecture = str(index.get("_class_name"))
        family = family_of_class(_OPTIMUM.sub("", architecture))
        if family is None:
            raise BadInput(f"{root} is a {architecture}, which is not supported.", f"Supported: {', '.join(FAMILIES)}.")
        kind = FAMILIES[family]
        names = [n for n in (*kind.required, *kind.optional) if (root / n / graph).is_file()]
        settings = pipeline_settings(family, _configs(root), _json(root / "scheduler/scheduler_config.json"), index)
        graphs = {n: f"{n}/{graph}" for n in names}
        for folder in sorted(p for p in root.glob("tokenizer*") if p.is_dir()):
            whole = (folder / "tokenizer.json").is_file()
            settings["files"][folder.name] = f"{folder.name}/{'tokenizer.json' if whole else 'vocab.json'}"
    else:
        config = _json(root / "config.json")
        settings = classifier_settings(config, _json(root / "preprocessor_config.json"))
        architecture = str((config.get("architectures") or ["?"])[0])
        graphs = {"model": graph}
    components = {name: _component(name, format, path, root) for name, path in graphs.items()}
    artifact = Artifact(
        root=root,
        id="",
        model={"source": str(root), "architecture": architecture, "revision": None},
        pipeline=settings,
        components=components,
        proof={"images": "not run", "labels": "not run"},
    )
    artifact.verify()
    return artifact


def _configs(root: Path) -> dict[str, dict[str, Any]]:
    """Folder of a component -> its config; the VAE's lies beside its decoder."""
    found = {p.parent.name: _json(p) for p in sorted(root.glob("*/config.json"))}
    if "vae" not in found and "vae_decoder" in found:
        found["vae"] = found["vae_decoder"]
    return found


def _component(name: str, format: str, path: str, root: Path) -> Component:
    """A component whose inputs and outputs are read from its graph, by the runtime that will open it."""
    graph = root / path
    if format == "openvino":
        data = [graph.with_suffix(".bin")]
    else:
        locations = sorted({one.location for one in external_initializers(graph).values()})
        for location in locations:
            check_inside(root, (PurePosixPath(path).parent / location).as_posix())
        data = [graph.parent / location for location in locations]
    for file in data:
        if not file.is_file():
            raise BadArtifact(f"{file} is missing.", _AGAIN)
    inputs, outputs = load_runtime(runtime_for(format)).describe(graph)
    stored = _ir_types(graph) if format == "openvino" else _onnx_types(graph)
    return Component(
        name,
        format,
        path,
        inputs,
        outputs,
        tuple(WeightFile(p.relative_to(root).as_posix(), p.stat().st_size) for p in data),
        precision=_precision(format, stored, inputs, outputs),
        root=root,
    )


def _precision(
    format: str, stored: Counter[str], inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> dict[str, Any]:
    """What most of the weights are stored in, and what is computed in; recipe: None where the folder does not say."""
    floats = [spec.dtype.value for spec in (*inputs.values(), *outputs.values()) if spec.dtype.value in _FLOATS]
    passed = floats[0] if floats else "float32"
    weights = stored.most_common(1)[0][0] if stored else passed
    # an ONNX graph is computed in the types that it names; an IR's fp16 weights are widened to what it takes and gives
    activations = weights if format == "onnx" and weights in _FLOATS else passed
    return {
        "recipe": _FLOATS.get(weights) if weights == activations else None,
        "weights": weights,
        "activations": activations,
    }


def _onnx_types(graph: Path) -> Counter[str]:
    """Dtype -> numbers in the weights of an ONNX graph."""
    found: Counter[str] = Counter()
    for one in initializers(graph).values():
        if one.type in _ONNX_TYPES:
            found[_ONNX_TYPES[one.type]] += math.prod(one.shape)
    return found


def _ir_types(graph: Path) -> Counter[str]:
    """Dtype -> bytes in the weights of an OpenVINO IR."""
    found: Counter[str] = Counter()
    try:
        for _, layer in ElementTree.iterparse(graph):
            if layer.tag != "layer":
                continue
            data = layer.find("data")
            if layer.get("type") == "Const" and data is not None and data.get("element_type") in _IR_TYPES:
                found[_IR_TYPES[str(data.get("element_type"))]] += int(data.get("size", 0))
            layer.clear()
    except (OSError, ValueError, ElementTree.ParseError) as exc:
        raise BadArtifact(f"{graph} does not load: {exc}.", _AGAIN) from exc
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except BadInput as exc:  # a model's file elsewhere; here a part of what was exported
        raise BadArtifact(exc.what, _AGAIN) from exc
