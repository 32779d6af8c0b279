"""Execution providers: the table and its options, which one is chosen, what is refused, and those that are here."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.device import KINDS, Device  # noqa: E402
from vitrify.core.errors import DeviceError, UsageError  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.ort import RUNTIME  # noqa: E402
from vitrify.runtimes.ort_builds import first_line, source  # noqa: E402
from vitrify.runtimes.ort_cache import built_folder  # noqa: E402
from vitrify.runtimes.ort_choice import check_placement, precision_of, provider_of  # noqa: E402
from vitrify.runtimes.ort_probe import kinds_here, lists, opens, probe_providers  # noqa: E402
from vitrify.runtimes.ort_providers import CPU, PROVIDERS, Asked, Provider, named, of_kind  # noqa: E402

ROWS = {row.name: row for row in PROVIDERS}
UNET = Component(
    "unet",
    "onnx",
    "unet/model.onnx",
    {
        "sample": TensorSpec(DType.FLOAT32, ("batch", 4, "height", "width")),
        "timestep": TensorSpec(DType.FLOAT32, ()),
        "states": TensorSpec(DType.FLOAT32, ("batch", 77, 768)),
    },
    {},
    shapes={"batch": (1, 2, 4), "height": (8, 64, 128), "width": (8, 64, 128)},
)
HALF = replace(UNET, precision={"activations": "float16"})


def told(name: str, device: str, component: Component = UNET, **how: Any) -> dict[str, str]:
    folder, overridden = how.pop("folder", None), how.pop("overridden", False)
    return ROWS[name].settings(Asked(component, Device.parse(device), Options(**how), folder, overridden))


def test_the_table_names_devices_that_there_are() -> None:
    assert len({row.name for row in PROVIDERS}) == len({row.title for row in PROVIDERS}) == len(PROVIDERS)
    for row in PROVIDERS:
        assert set(row.kinds) <= set(KINDS) - {"auto", "hetero"}, row.name
        assert row.wheel or row.plugin[0], row.name
        assert named(row.name) is named(row.title) is row
        assert row.behind == "" or ROWS[row.behind].kinds == row.kinds
    assert [row.name for row in of_kind("cuda")] == ["cuda", "tensorrt", "nv-tensorrt-rtx"]
    assert [of_kind(kind)[0].name for kind in ("cpu", "rocm", "gpu", "npu")] == [
        "cpu",
        "migraphx",
        "openvino",
        "openvino",
    ]
    assert named("abacus") is None


def test_cuda_is_told_to_keep_float32() -> None:
    plain = told("cuda", "cuda:1")
    assert plain == {"device_id": "1", "use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    more = told("cuda", "cuda", cuda_graphs=True, arena=False)
    assert more["enable_cuda_graph"] == "1"
    assert more["arena_extend_strategy"] == "kSameAsRequested"


def test_tensorrt_gets_the_range_of_sizes_of_the_inputs_that_have_any() -> None:
    made = told("tensorrt", "cuda", folder="/kept", cuda_graphs=True)
    assert made["trt_profile_min_shapes"] == "sample:1x4x8x8,states:1x77x768"
    assert made["trt_profile_opt_shapes"] == "sample:2x4x64x64,states:2x77x768"
    assert made["trt_profile_max_shapes"] == "sample:4x4x128x128,states:4x77x768"
    assert made["trt_engine_cache_path"] == made["trt_timing_cache_path"] == "/kept"
    assert made["trt_cuda_graph_enable"] == "1"
    rtx = told("nv-tensorrt-rtx", "cuda", folder="/kept", cuda_graphs=True)
    assert rtx["nv_profile_max_shapes"] == made["trt_profile_max_shapes"]
    assert (rtx["nv_runtime_cache_path"], rtx["enable_cuda_graph"]) == ("/kept", "1")
    unknown = told("tensorrt", "cuda", replace(UNET, shapes={"batch": (1, 2, 4)}))
    assert not [name for name in unknown if "profile" in name], "a range that is known in part is none"


def test_float16_is_allowed_where_the_artifact_says_so_alone() -> None:
    assert not [name for name in told("tensorrt", "cuda") if "16" in name]
    assert told("tensorrt", "cuda", HALF)["trt_fp16_enable"] == "1"
    assert not [name for name in told("migraphx", "rocm", HALF) if "16" in name], "it would round the rest as well"
    for component, hint in ((UNET, "f32"), (HALF, "f16")):
        assert json.loads(told("openvino", "gpu", component)["load_config"])["GPU"]["INFERENCE_PRECISION_HINT"] == hint


def test_openvino_is_told_the_device_and_its_properties() -> None:
    cpu = told("openvino", "cpu", threads=3, hint="throughput", streams=2)
    assert cpu["device_type"] == "CPU"
    assert json.loads(cpu["load_config"])["CPU"] == {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": "3",
        "NUM_STREAMS": "2",
    }  # fmt: skip
    gpu = told("openvino", "gpu:1", threads=3)
    assert gpu["device_type"] == "GPU.1"
    assert "INFERENCE_NUM_THREADS" not in json.loads(gpu["load_config"])["GPU"]


def test_the_others_are_told_their_device_and_their_cache() -> None:
    assert told("directml", "directml:1") == told("rocm", "rocm:1") == told("migraphx", "rocm:1") == {"device_id": "1"}
    assert told("migraphx", "rocm", folder="/kept")["migraphx_model_cache_dir"] == "/kept"
    assert told("coreml", "coreml", folder="/kept") == {
        "ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "AllowLowPrecisionAccumulationOnGPU": "0",
        "ModelCacheDirectory": "/kept",
    }  # fmt: skip
    assert (ROWS["directml"].session, ROWS["directml"].alone) == ({"enable_mem_pattern": False}, True)


def library_of(row: Provider) -> Path:
    """The provider's shared library."""
    if source(row) == "plugin":
        return Path(__import__(row.plugin[1]).get_library_path())
    form = {"Windows": "{}.dll", "Darwin": "lib{}.dylib"}.get(platform.system(), "lib{}.so")
    return Path(ort.__file__).parent / "capi" / form.format(row.file)


@pytest.mark.parametrize("row", [r for r in PROVIDERS if r.file or r.plugin[0]], ids=lambda r: r.name)
def test_the_library_itself_knows_each_option(row: Provider) -> None:
    if not source(row):
        pytest.skip(f"needs {row.wheel or row.plugin[0]}")
    text = library_of(row).read_bytes()
    every = Asked(HALF, Device(row.kinds[0]), Options(cuda_graphs=True, arena=False), "/kept", True)
    # longer names than 15 letters may be split by the compiler: their beginning is left
    assert [name for name in row.settings(every) if name[:14].encode() not in text] == []


# Which provider is chosen, and what is refused.


def test_the_devices_first_provider_is_used_where_none_is_named() -> None:
    assert provider_of(Device("cpu"), Options()) is provider_of(Device("cpu"), Options(provider="cpu")) is CPU
    assert provider_of(Device("cpu", 0), Options(provider="CPUExecutionProvider")) is CPU


@pytest.mark.parametrize(
    ("device", "options", "error", "said"),
    [
        ("cpu", {"provider": "abacus"}, UsageError, r"no execution provider 'abacus'.*Providers are cuda, tensorrt"),
        (
            "cpu",
            {"provider": "tensorrt"},
            UsageError,
            r"tensorrt does not run cpu; it runs cuda.*cpu or openvino",
        ),
        ("cpu", {"cuda_graphs": True}, UsageError, r"cpu records no CUDA graphs.*cuda, tensorrt, nv-tensorrt-rtx have"),
        (
            "cuda",
            {},
            DeviceError,
            r"cannot run on cuda here; it has .*cpu.* install onnxruntime-gpu",
        ),
        ("cuda", {"provider": "nv-tensorrt-rtx"}, DeviceError, r"by NvTensorRTRTXExec.*pip install onnxruntime-ep-nv"),
        ("rocm:1", {}, DeviceError, r"cannot run on rocm:1 here; it has .*cpu\."),
        ("coreml", {"provider": "coreml"}, DeviceError, r"cannot run on coreml by CoreMLExecutionProvider here"),
        ("xpu", {}, DeviceError, r"cannot run on xpu here; it has .*Give --device"),
    ],
    ids=str,
)
def test_a_provider_that_cannot_be_is_refused(
    device: str, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    kind = Device.parse(device).kind
    if kind != "cpu" and any(source(row) for row in of_kind(kind) if row.systems == ()):
        pytest.skip(f"needs ONNX Runtime without {kind}")
    with pytest.raises(error, match=said):
        provider_of(Device.parse(device), Options(**options))


def test_tf32_needs_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE", raising=False)
    row = ROWS["tensorrt"]
    with pytest.raises(DeviceError, match=r"tensorrt computes float32 in TF32.*NVIDIA_TF32_OVERRIDE=0.*precision=tf32"):
        precision_of(UNET, row, Options())
    with pytest.raises(DeviceError, match="TF32"):
        precision_of(UNET, row, Options(precision="float32"))
    assert precision_of(UNET, row, Options(precision="tf32")) == "tf32"
    assert precision_of(HALF, row, Options()) == "float16"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert precision_of(UNET, row, Options()) == "float32"
    assert precision_of(UNET, ROWS["cuda"], Options()) == "float32"
    with pytest.raises(UsageError, match="what the graph says, float32, not float16"):
        precision_of(UNET, ROWS["cuda"], Options(precision="float16"))


def test_a_session_that_runs_elsewhere_is_refused(vit_model: Any) -> None:
    component = vit_model.components["onnx"]
    session = ort.InferenceSession(str(component.graph_path), providers=["CPUExecutionProvider"])
    assert check_placement(component, Device("cpu"), CPU, session) == "CPUExecutionProvider"
    with pytest.raises(DeviceError, match=r"cuda was asked for, ONNX Runtime placed model on CPUExecutionProvider"):
        check_placement(component, Device("cuda"), ROWS["cuda"], session)


class Placed:
    """What the library says of a session's nodes: (provider, operator)."""

    def __init__(self, *nodes: tuple[str, str]) -> None:
        self.nodes = nodes

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        class Node:
            def __init__(self, op_type: str) -> None:
                self.op_type = op_type

        class Part:
            def __init__(self, ep_name: str, op_type: str) -> None:
                self.ep_name, self.op_type = ep_name, op_type

            def get_nodes(self) -> list[Node]:
                return [Node(self.op_type)]

        return [Part(*node) for node in self.nodes]


@pytest.mark.skipif(
    not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"), reason="needs ONNX Runtime 1.24"
)
def test_shapes_may_be_computed_on_the_cpu_and_nothing_else() -> None:
    gpu, cpu, cuda = "CUDAExecutionProvider", "CPUExecutionProvider", ROWS["cuda"]
    shapes = Placed((gpu, "Conv"), (cpu, "Shape"), (cpu, "Gather"), (cpu, "Concat"))
    assert check_placement(UNET, Device("cuda"), cuda, shapes) == gpu
    with pytest.raises(DeviceError, match=r"leaves DynamicQuantizeLinear of unet to the CPU.*another provider"):
        check_placement(UNET, Device("cuda"), cuda, Placed((gpu, "Conv"), (cpu, "DynamicQuantizeLinear")))
    with pytest.raises(DeviceError, match=r"leaves all of unet to the CPU"):
        check_placement(UNET, Device("cuda"), cuda, Placed((cpu, "Shape")))


def test_a_provider_behind_another_is_told() -> None:
    session = Placed(("TensorrtExecutionProvider", "Conv"), ("CUDAExecutionProvider", "Einsum"))
    session.get_providers = lambda: ["TensorrtExecutionProvider", "CUDAExecutionProvider"]  # type: ignore[method-assign]
    if not hasattr(ort.InferenceSession, "get_provider_graph_assignment_info"):
        pytest.skip("needs ONNX Runtime 1.24")
    ran = check_placement(UNET, Device("cuda"), ROWS["tensorrt"], session)
    assert ran == "TensorrtExecutionProvider, CUDAExecutionProvider"


# What is here.


def test_the_probe_tries_what_is_here_and_says_what_is_missing_of_the_rest() -> None:
    found = {one["name"]: one for one in probe_providers()}
    assert list(found) == list(ROWS)
    assert (found["cpu"]["usable"], found["cpu"]["opened"], found["cpu"]["version"]) == (True, ["cpu"], ort.__version__)
    for name, one in found.items():
        assert one["found"] == source(ROWS[name])
        assert one["usable"] is bool(one["opened"])
        assert one["usable"] or one["missing"], name
        assert set(one["opened"]) <= set(kinds_here())
    probe = RUNTIME.probe()
    assert set(probe.devices) == {kind for one in found.values() for kind in one["opened"]}
    assert probe.devices[-1] == "cpu"
    assert [one["name"] for one in probe.details["providers"]] == list(ROWS)


def test_a_provider_that_does_not_open_the_small_graph_says_why() -> None:
    assert opens(CPU, Device("cpu")) == ""
    absent = next(row for row in PROVIDERS if not source(row) and row.wheel)
    assert opens(absent, Device(absent.kinds[0])) != ""


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[ONNXRuntimeError] : 1 : FAIL : Too old.", "Too old."),
        ("/a/b.cc:1 f() [ONNXRuntimeError] : 1 : FAIL : Load x with error: y.so: not there\n", "y.so: not there"),
        ("Plain.\nMore.", "Plain."),
        ("", "ValueError"),
    ],
)
def test_an_exception_is_told_in_its_own_words(said: str, words: str) -> None:
    assert first_line(ValueError(said)) == words


def test_what_a_provider_builds_is_kept_apart_for_other_weights(
    vit_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("VITRIFY_CACHE_MAX", raising=False)
    shutil.copytree(vit_model.components["onnx"].root, tmp_path / "a")
    component = replace(vit_model.components["onnx"], root=tmp_path / "a")
    first = built_folder(component, ROWS["tensorrt"], "1")
    assert first is not None
    assert Path(first).is_dir()
    assert built_folder(component, ROWS["tensorrt"], "1") == first
    assert built_folder(component, ROWS["tensorrt"], "2") != first
    path = component.root / component.weights[0].path
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-4] + b"\0\0\0\1")
    changed = replace(component, weights=(replace(component.weights[0], sha256=None),))
    assert built_folder(changed, ROWS["tensorrt"], "1") != first
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "1000")
    assert built_folder(component, ROWS["tensorrt"], "1") is None


# OpenVINO's provider, in the environment of make test-providers. The contract is held against it as well.


@pytest.fixture
def openvino(vit_model: Any) -> Callable[..., Any]:
    if "openvino" not in [row.name for row in lists(Device("cpu"))]:
        pytest.skip("needs ONNX Runtime's provider openvino: make test-providers")
    return lambda **options: RUNTIME.open(
        vit_model.components["onnx"], Device("cpu"), Options(provider="openvino", **options)
    )


def inputs(rows: int = 2) -> dict[str, np.ndarray]:
    return {"pixel_values": np.random.default_rng(0).standard_normal((rows, 3, 8, 8)).astype(np.float32)}


@pytest.mark.providers
def test_openvino_runs_all_of_a_classifier_on_the_cpu(openvino: Callable[..., Any], vit_model: Any) -> None:
    session = openvino()
    assert session.placement.to_json() == {
        "runtime": "onnx", "provider": "OpenVINOExecutionProvider", "device": "cpu", "precision": "float32",
    }  # fmt: skip
    got, expected = session.run(inputs())["logits"], vit_model.reference(inputs())["logits"]
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.ptp(expected))
    tensor = session.to_device(inputs()["pixel_values"])
    on_device = session.run_on_device({"pixel_values": tensor})["logits"]
    np.testing.assert_array_equal(session.to_host(on_device), got)


@pytest.mark.providers
def test_openvino_runs_a_unet_or_says_which_operators_it_leaves(openvino: Callable[..., Any], unet_model: Any) -> None:
    """The provider in onnxruntime-openvino 1.24 does not compile GroupNormalization of opset 21 in these graphs."""
    component = replace(unet_model.components["onnx"], name="unet")
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version > (1, 24):
        session = RUNTIME.open(component, Device("cpu"), Options(provider="openvino"))
        assert session.placement.provider == "OpenVINOExecutionProvider"
        return
    with pytest.raises(DeviceError, match=r"OpenVINOExecutionProvider leaves Conv, .* of unet to the CPU"):
        RUNTIME.open(component, Device("cpu"), Options(provider="openvino"))


@pytest.mark.providers
@pytest.mark.parametrize("row", [r for r in PROVIDERS if r.plugin[0]], ids=lambda r: r.name)
def test_a_plugin_lists_devices_or_says_what_it_lacks(row: Provider) -> None:
    if source(row) != "plugin":
        pytest.skip(f"needs {row.plugin[0]}: make test-providers")
    (one,) = [one for one in probe_providers() if one["name"] == row.name]
    assert one["version"]
    assert one["opened"] or (one["missing"] and one["fix"].startswith("It needs "))


def test_two_that_are_quiet_at_once_leave_the_output_as_it_was() -> None:
    from vitrify.runtimes.ort_builds import quietly

    before = sys.stdout
    first, second = quietly(), quietly()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert sys.stdout is not before
    second.__exit__(None, None, None)
    assert sys.stdout is before
