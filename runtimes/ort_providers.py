"""ONNX Runtime's execution providers: one table, and what each is told. A new provider is one row.

Each function names the page that its options are from, below onnxruntime.ai/docs/execution-providers where no other
address stands. Values are text, as the library takes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..core.artifact import Component
from ..core.device import Device
from .base import Options

Settings = dict[str, str]
_OPENVINO_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Asked:
    """What a session is opened for. folder: for what the provider builds, kept between runs; None: nothing is kept."""

    component: Component
    device: Device
    options: Options
    folder: str | None = None
    overridden: bool = False

    @property
    def floats(self) -> str:
        """The dtype that the artifact says it computes in."""
        return str(self.component.precision.get("activations", "float32"))

    @property
    def index(self) -> str:
        return str(self.device.index or 0)


@dataclass(frozen=True)
class Provider:
    """One row.

    name: ours. title: ONNX Runtime's. kinds: of the devices that it runs.
    wheel: the build of ONNX Runtime that has it. plugin: a package that adds it to any build, and its module.
    systems: of `platform.system()` where it exists; none: anywhere.
    needs: what the machine must have, for who reads why it does not open.
    file: its shared library in the build, whose missing parts can be named.
    memory: of its device tensors, as OrtValue names it.
    graphs: its option that records CUDA graphs. behind: a provider that takes the nodes that it leaves.
    builds: it makes an engine of each graph, seconds even for the smallest. keeps: it may keep that in a folder.
    tf32: it computes float32 in TF32 and has no option against that. alone: one call at a time.
    """

    name: str
    title: str
    kinds: tuple[str, ...]
    settings: Callable[[Asked], Settings]
    wheel: str = ""
    plugin: tuple[str, str] = ("", "")
    systems: tuple[str, ...] = ()
    needs: str = ""
    file: str = ""
    memory: str = "cpu"
    graphs: str = ""
    behind: str = ""
    builds: bool = False
    keeps: bool = False
    tf32: bool = False
    alone: bool = False
    session: Mapping[str, bool] = field(default_factory=dict)


def _nothing(asked: Asked) -> Settings:
    return {}


def _cuda(asked: Asked) -> Settings:
    """CUDA-ExecutionProvider.html. float32 is float32: TF32, on by default, keeps 10 bits of the mantissa."""
    told = {"device_id": asked.index, "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    if asked.options.cuda_graphs:
        told["enable_cuda_graph"] = "1"
    if not asked.options.arena:
        told["arena_extend_strategy"] = "kSameAsRequested"
    return told


def _tensorrt(asked: Asked) -> Settings:
    """TensorRT-ExecutionProvider.html. A float16 graph needs leave for float16; a float32 one must not get it."""
    told = {"device_id": asked.index, **_profile(asked.component, "trt_profile")}
    if asked.floats in ("float16", "bfloat16"):
        told["trt_fp16_enable" if asked.floats == "float16" else "trt_bf16_enable"] = "1"
    if asked.options.cuda_graphs:
        told["trt_cuda_graph_enable"] = "1"
    if asked.overridden:
        told["trt_load_user_initializer"] = "1"
    if asked.folder:
        told |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": asked.folder}
        told |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": asked.folder}
    return told


def _tensorrt_rtx(asked: Asked) -> Settings:
    """nvidia.github.io/TensorRT-RTX-EP-ABI, provider options; the plugin's own header says the same."""
    told = {"device_id": asked.index, **_profile(asked.component, "nv_profile")}
    if asked.options.cuda_graphs:
        told["enable_cuda_graph"] = "1"
    if asked.overridden:
        told["nv_use_external_data_initializer"] = "1"
    if asked.folder:
        told["nv_runtime_cache_path"] = asked.folder
    return told


def _openvino(asked: Asked) -> Settings:
    """OpenVINO-ExecutionProvider.html: properties go through load_config, the older options for them are deprecated.

    No CACHE_DIR: with the provider of 1.24 each session wrote its blob anew.
    """
    kind, options = asked.device.kind.upper(), asked.options
    own = {
        "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS.get(asked.floats, "f32"),  # left out, it may round to bfloat16
        "PERFORMANCE_HINT": options.hint.upper(),
    }
    if options.threads and kind == "CPU":
        own["INFERENCE_NUM_THREADS"] = str(options.threads)
    if options.streams:
        own["NUM_STREAMS"] = str(options.streams)
    return {"device_type": openvino_device(asked.device), "load_config": json.dumps({kind: own})}


def _directml(asked: Asked) -> Settings:
    """DirectML-ExecutionProvider.html."""
    return {"device_id": asked.index}


def _coreml(asked: Asked) -> Settings:
    """CoreML-ExecutionProvider.html: an ML program computes in the graph's floats; the older form in float16."""
    told = {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "AllowLowPrecisionAccumulationOnGPU": "0"}
    return told | ({"ModelCacheDirectory": asked.folder} if asked.folder else {})


def _migraphx(asked: Asked) -> Settings:
    """MIGraphX-ExecutionProvider.html. migraphx_fp16_enable stays off: it rounds a float32 graph to float16."""
    return {"device_id": asked.index} | ({"migraphx_model_cache_dir": asked.folder} if asked.folder else {})


def _rocm(asked: Asked) -> Settings:
    """ROCm-ExecutionProvider.html."""
    return {"device_id": asked.index}


def _webgpu(asked: Asked) -> Settings:
    """WebGPU-ExecutionProvider.html: the plugin chooses the GPU itself."""
    return {}


# The first that runs a kind of device is what runs it where nobody names another.
PROVIDERS: tuple[Provider, ...] = (
    Provider(
        "cuda", "CUDAExecutionProvider", ("cuda",), _cuda, wheel="onnxruntime-gpu",
        needs='NVIDIA\'s driver, CUDA and cuDNN; pip install "onnxruntime-gpu[cuda,cudnn]" brings the last two',
        file="onnxruntime_providers_cuda", memory="cuda", graphs="enable_cuda_graph",
    ),
    Provider(
        "tensorrt", "TensorrtExecutionProvider", ("cuda",), _tensorrt, wheel="onnxruntime-gpu",
        needs="NVIDIA's driver, CUDA, cuDNN and TensorRT 10", file="onnxruntime_providers_tensorrt", memory="cuda",
        graphs="trt_cuda_graph_enable", behind="cuda", builds=True, keeps=True, tf32=True,
    ),
    Provider(
        "nv-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", ("cuda",), _tensorrt_rtx,
        plugin=("onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime_ep_nv_tensorrt_rtx"),
        needs="NVIDIA's driver and an RTX GPU of Ampere or newer", memory="cuda", graphs="enable_cuda_graph",
        builds=True, keeps=True, tf32=True,
    ),
    Provider(
        "migraphx", "MIGraphXExecutionProvider", ("rocm",), _migraphx, wheel="onnxruntime-migraphx",
        needs="AMD's driver, ROCm and MIGraphX", file="onnxruntime_providers_migraphx", memory="gpu", builds=True,
        keeps=True,
    ),
    Provider(
        "rocm", "ROCMExecutionProvider", ("rocm",), _rocm, wheel="onnxruntime-rocm", needs="AMD's driver and ROCm",
        file="onnxruntime_providers_rocm", memory="gpu",
    ),
    Provider(
        "directml", "DmlExecutionProvider", ("directml",), _directml, wheel="onnxruntime-directml",
        systems=("Windows",), needs="Windows and a GPU with DirectX 12", memory="dml", alone=True,
        # neither memory patterns nor parallel execution, says its page; nodes run one after the other by default
        session={"enable_mem_pattern": False},
    ),
    Provider(
        "coreml", "CoreMLExecutionProvider", ("coreml",), _coreml, wheel="onnxruntime", systems=("Darwin",),
        needs="macOS", builds=True, keeps=True,
    ),
    Provider("cpu", "CPUExecutionProvider", ("cpu",), _nothing, wheel="onnxruntime"),
    Provider(
        "openvino", "OpenVINOExecutionProvider", ("cpu", "gpu", "npu"), _openvino, wheel="onnxruntime-openvino",
        plugin=("onnxruntime-ep-openvino", "onnxruntime_ep_openvino"),
        needs="an Intel device and its driver; the plugin takes no other maker's processor",
        file="onnxruntime_providers_openvino",
    ),
    Provider(
        "webgpu", "WebGpuExecutionProvider", ("gpu",), _webgpu,
        plugin=("onnxruntime-ep-webgpu", "onnxruntime_ep_webgpu"),
        needs="a GPU with Vulkan (libvulkan.so.1), Direct3D 12 or Metal",
    ),
)  # fmt: skip
CPU = next(row for row in PROVIDERS if row.name == "cpu")


def of_kind(kind: str) -> list[Provider]:
    """The providers of a kind of device, the default first."""
    return [row for row in PROVIDERS if kind in row.kinds]


def named(name: str) -> Provider | None:
    """The row that is called so, by us or by ONNX Runtime."""
    return next((row for row in PROVIDERS if name.lower() in (row.name, row.title.lower())), None)


def openvino_device(device: Device) -> str:
    """CPU, GPU, GPU.1, NPU."""
    return device.kind.upper() + (f".{device.index}" if device.index and device.kind != "cpu" else "")


def computes_in(row: Provider, floats: str) -> str:
    """The dtype that the provider really computes in, for a graph of `floats`.

    TensorRT's own builder takes TF32 for float32, and the variable that its libraries read is the one way to forbid it
    (github.com/microsoft/onnxruntime/issues/26029).
    """
    if row.tf32 and floats == "float32" and os.environ.get("NVIDIA_TF32_OVERRIDE") != "0":
        return "tf32"
    return floats


def _profile(component: Component, prefix: str) -> Settings:
    """The range of sizes that an engine is built for, of each input that has any; nothing where one is not known.

    Written as the pages of both TensorRT providers say: "sample:1x4x64x64,states:1x77x768".
    """
    told = {}
    for at, word in enumerate(("min", "opt", "max")):
        shapes = []
        for name, spec in component.inputs.items():
            if not any(isinstance(dim, str) for dim in spec.shape):
                continue
            if any(isinstance(dim, str) and dim not in component.shapes for dim in spec.shape):
                return {}
            dims = (dim if isinstance(dim, int) else component.shapes[dim][at] for dim in spec.shape)
            shapes.append(f"{name}:{'x'.join(map(str, dims))}")
        told[f"{prefix}_{word}_shapes"] = ",".join(shapes)
    return told if all(told.values()) else {}
