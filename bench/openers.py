"""How a model is opened whose steps are timed: through vitrify, or as somebody would who uses that library alone.

An opener imports its library, then returns the function that opens the model for given tensors, so that the time of
opening holds no imports. Of the four libraries nothing of vitrify takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.tensors import Array

Step = Callable[[], Array]
Open = Callable[[Mapping[str, Array]], Step]


@dataclass(frozen=True)
class Vitrified:
    """A step, and what its session tells beside its placement, such as the seconds that compiling took."""

    step: Step
    details: Mapping[str, Any]

    def __call__(self) -> Array:
        return self.step()


@dataclass(frozen=True)
class Model:
    """What is opened. path: an artifact, a graph or a model's folder. component, runtime: of an artifact.

    threads: 0 leaves the choice to the library. options: of an artifact's runtime, such as "compile=regional".
    """

    path: Path
    component: str = ""
    runtime: str = ""
    threads: int = 0
    options: tuple[str, ...] = ()


def vitrify(model: Model) -> Open:
    """A component, opened as `pipelines.load` does it: default options, on the CPU."""
    from ..core.artifact import Artifact
    from ..core.device import Device
    from ..core.registry import load_runtime
    from ..runtimes.base import Options
    from ..runtimes.options import check_options, parse_options

    runtime = load_runtime(model.runtime)
    options = parse_options(model.options, Options(threads=model.threads))
    check_options([runtime], options)

    def opened(tensors: Mapping[str, Array]) -> Step:
        component = Artifact.load(model.path).components[model.component]
        session = runtime.open(component, Device("cpu"), options)
        (output,) = session.outputs
        return Vitrified(lambda: np.asarray(session.run(tensors)[output]), getattr(session, "details", {}))

    return opened


def onnxruntime(model: Model) -> Open:
    """The graph with default options. It lies beside its weights, so that ONNX Runtime needs no folder named."""
    import onnxruntime as ort

    def opened(tensors: Mapping[str, Array]) -> Step:
        options = ort.SessionOptions()
        options.intra_op_num_threads = model.threads  # 0 is the default
        session = ort.InferenceSession(str(model.path), options)
        return lambda: np.asarray(session.run(None, dict(tensors))[0])

    return opened


def openvino(model: Model) -> Open:
    """The graph with default options, but for the precision: float32, as the artifact says.

    Left to itself, OpenVINO computes it in bfloat16 where the processor has that, which is another computation.
    """
    import openvino as ov

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    if model.threads:
        settings["INFERENCE_NUM_THREADS"] = model.threads

    def opened(tensors: Mapping[str, Array]) -> Step:
        core = ov.Core()
        compiled = core.compile_model(core.read_model(str(model.path)), "CPU", settings)
        return lambda: np.asarray(compiled(dict(tensors))[0])

    return opened


def diffusers(model: Model) -> Open:
    """A UNet in eager mode, float32."""
    import torch
    from diffusers import UNet2DConditionModel

    def opened(tensors: Mapping[str, Array]) -> Step:
        unet = UNet2DConditionModel.from_pretrained(str(model.path), torch_dtype=torch.float32, local_files_only=True)
        return _eager(unet, tensors, model.threads)

    return opened


def transformers(model: Model) -> Open:
    """A ViT in eager mode, float32."""
    import torch
    from transformers import ViTForImageClassification

    def opened(tensors: Mapping[str, Array]) -> Step:
        vit = ViTForImageClassification.from_pretrained(str(model.path), dtype=torch.float32, local_files_only=True)
        return _eager(vit, tensors, model.threads)

    return opened


def _eager(module: Any, tensors: Mapping[str, Array], threads: int) -> Step:
    import torch

    if threads:
        torch.set_num_threads(threads)
    module.eval()
    inputs = {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}

    def step() -> Array:
        with torch.no_grad():
            return np.asarray(module(**inputs, return_dict=False)[0].numpy())

    return step


OPENERS: dict[str, Callable[[Model], Open]] = {
    "vitrify": vitrify,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "diffusers": diffusers,
    "transformers": transformers,
}
