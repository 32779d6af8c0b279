"""What is TensorRT's own: GPUs that are not there, plans for other GPUs, and names that the library must have.

Both libraries share their code; it is held against TensorRT-RTX, the one that installs anywhere.
"""

from __future__ import annotations

import ast
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, UsageError  # noqa: E402
from vitrify.core.registry import RUNTIMES, load_runtime, runtime_for  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402
from vitrify.runtimes import cuda  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.cuda import CALLS, Gpu, find_gpus  # noqa: E402
from vitrify.runtimes.trt import DTYPES, check_range, fits, message_log, needs, plain  # noqa: E402
from vitrify.runtimes.trt_rtx import RUNTIME  # noqa: E402

ROOT = Path(cuda.__file__).resolve().parents[1]
REBUILD = r"vitrify compile ARTIFACT --to tensorrt-rtx -o DIR"


def gpus() -> tuple[Gpu, ...]:
    try:
        return find_gpus()
    except DeviceError:
        return ()


GPUS = gpus()
without_gpu = pytest.mark.skipif(bool(GPUS), reason="tells what happens where there is no NVIDIA GPU")
needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="needs an NVIDIA GPU and its driver")]


@pytest.fixture(scope="module")
def plan(vit_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(vit_model.components["onnx"], tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def unet_plan(unet_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(unet_model.components["onnx"], tmp_path_factory.mktemp("plan"))


def test_it_opens_its_own_format() -> None:
    assert load_runtime("tensorrt-rtx") is RUNTIME
    for name in ("tensorrt-rtx", "tensorrt"):
        assert RUNTIMES[name].formats == (name,)
        assert runtime_for(name) == name


@without_gpu
def test_a_machine_without_a_gpu_is_probed() -> None:
    probe = RUNTIME.probe()
    assert (probe.runtime, probe.version, probe.devices) == ("tensorrt-rtx", trt.__version__, ())
    assert "builds plans here and cannot run them" in probe.problem
    assert "NVIDIA GPU" in probe.problem
    assert "driver" in probe.fix


@without_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_the_one_that_is_needed_is_named(plan: Component, device: str) -> None:
    with pytest.raises(DeviceError) as caught:
        RUNTIME.open(plan, Device.parse(device), Options())
    assert "model needs an NVIDIA GPU of compute capability 8.0 or newer" in caught.value.what
    assert re.search(REBUILD, caught.value.fix)


@without_gpu
def test_a_plan_reaches_the_library_that_has_no_gpu(plan: Component) -> None:
    """The last step that can be taken here: the library reads the plan's bytes and asks for a GPU."""
    log = message_log(trt)
    with pytest.raises(DeviceError, match=r"does not open model on a GPU \(compute capability 8\.6\).*Cuda") as caught:
        RUNTIME._context(plan, Gpu(0, "a GPU", (8, 6)), log)
    assert "_src/" not in caught.value.what
    assert log.errors


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_plan_that_cannot_be_read_is_refused(plan: Component, tmp_path: Path, damage: str) -> None:
    component = replace(plan, root=tmp_path)
    if damage == "empty":
        component.graph_path.parent.mkdir()
        component.graph_path.touch()
    with pytest.raises(BadArtifact, match=r"model/model\.plan cannot be read") as caught:
        RUNTIME._context(component, Gpu(0, "a GPU", (8, 6)), message_log(trt))
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("device", ["cpu", "npu", "rocm"])
def test_a_device_that_is_no_nvidia_gpu_is_refused(plan: Component, device: str) -> None:
    with pytest.raises(DeviceError, match=rf"cannot run model on {device}: it needs an NVIDIA GPU.*{REBUILD}"):
        RUNTIME.open(plan, Device(device), Options())


@pytest.mark.parametrize(
    ("requires", "said"),
    [
        ({"runtime": "tensorrt-rtx==1.5.0.114"}, r"a plan of TensorRT-RTX 1\.5\.0\.114, which \S+ does not run"),
        ({"os": "Plan 9"}, rf"a plan for Plan 9, this is {platform.system()}"),
    ],
)
def test_a_plan_for_another_version_or_system_is_refused(plan: Component, requires: dict[str, str], said: str) -> None:
    other = replace(plan, requires=plan.requires | requires)
    with pytest.raises(DeviceError, match=rf"{said}.*NVIDIA GPU of compute capability 8\.0 or newer.*{REBUILD}"):
        RUNTIME.open(other, Device("cuda"), Options())


def test_a_plans_weights_cannot_be_changed(plan: Component) -> None:
    with pytest.raises(UsageError, match=r"weights cannot be changed.*Run the artifact that it was compiled from"):
        RUNTIME.open(plan, Device("cuda"), Options(), {"classifier.bias": np.zeros(5, np.float32)})


@pytest.mark.parametrize(
    ("capability", "wanted", "fit"),
    [
        ((8, 6), "8.0+", True),
        ((12, 0), "8.0+", True),
        ((8, 0), "8.0+", True),
        ((7, 5), "8.0+", False),
        ((8, 6), "8.6", True),
        ((8, 9), "8.6", False),
        ((8, 9), "8.6,8.9", True),
        ((9, 0), "8.6, 12.0+", False),
        ((12, 1), "8.6, 12.0+", True),
        ((10, 0), "8.9+", True),
    ],
)
def test_which_gpus_a_plan_fits(capability: tuple[int, int], wanted: str, fit: bool) -> None:
    assert fits(capability, wanted) is fit


def test_a_capability_that_is_none_is_the_manifests_fault() -> None:
    with pytest.raises(BadArtifact, match=r"compute capability 'sm_86', which is none"):
        fits((8, 6), "sm_86")


def test_what_a_plan_needs_in_words(plan: Component) -> None:
    def said(wanted: str | None) -> str:
        return needs(replace(plan, requires={"compute_capability": wanted}))

    assert said("8.6,8.9") == "an NVIDIA GPU of compute capability 8.6 or 8.9"
    assert said(None) == "an NVIDIA GPU like the one that it was built on"


def test_sizes_outside_the_plan_are_told() -> None:
    spec = TensorSpec(DType.FLOAT32, ("batch", "height"))
    plan = Component("unet", "tensorrt-rtx", "", {"x": spec}, {}, shapes={"batch": (1, 2, 4), "height": (64, 64, 64)})
    check_range(plan, {"batch": 4, "height": 64})
    with pytest.raises(BadInput, match=r"unet was given batch = 5; its plan was built for 1 to 4"):
        check_range(plan, {"batch": 5, "height": 64})
    with pytest.raises(BadInput, match=r"height = 8; its plan was built for 64 only.*compile the artifact again"):
        check_range(plan, {"batch": 1, "height": 8})


def test_a_message_is_one_line_without_the_librarys_own_places() -> None:
    message = "Error Code 4: API Usage Error (bad blocks In validate at /_src/api/layers.cpp:444)\n and more"
    assert plain(message) == "Error Code 4: API Usage Error (bad blocks) and more"
    assert plain("") == plain(None) == "it does not say why"
    assert len(plain("x" * 1000)) == 300


# names -------------------------------------------------------------------------------------------------------------

# variables of runtimes/trt.py and export/plan.py, and the class of the library that each is
OBJECTS = {
    "trt": trt,
    "runtime": trt.Runtime,
    "engine": trt.ICudaEngine,
    "context": trt.IExecutionContext,
    "builder": trt.Builder,
    "network": trt.INetworkDefinition,
    "parser": trt.OnnxParser,
    "error": trt.ParserError,
    "config": trt.IBuilderConfig,
    "profile": trt.IOptimizationProfile,
    "tensor": trt.ITensor,
}
OURS = {
    *("library", "title", "version"),  # of TrtRuntime, which is called runtime in plan.py
    *("nbytes",),  # of numpy's arrays
}


def used(path: Path) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(variable, names behind it) of each attribute that is read or called on one of `OBJECTS`."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and names:
            if node.id == "self" and names[0].lstrip("_") in OBJECTS:
                yield names[0].lstrip("_"), tuple(names[1:])
            elif node.id in OBJECTS:
                yield node.id, tuple(names)


@pytest.mark.parametrize("file", ["runtimes/trt.py", "export/plan.py"])
def test_every_name_of_the_library_exists(file: str) -> None:
    seen = {(owner, names) for owner, names in used(ROOT / file) if names and names[0] not in OURS}
    assert len(seen) > 12
    for owner, names in seen:
        found: Any = OBJECTS[owner]
        for name in names if owner == "trt" else names[:1]:
            assert hasattr(found, name), f"{owner}.{'.'.join(names)}"
            found = getattr(found, name)


def test_every_dtype_of_the_library_is_known_or_never_a_tensor() -> None:
    assert set(trt.DataType.__members__) - set(DTYPES) <= {"FP8", "INT4", "FP4", "E8M0"}
    assert set(DTYPES) <= set(trt.DataType.__members__)


def test_every_call_of_the_driver_is_declared_and_used() -> None:
    text = Path(cuda.__file__).read_text("utf-8")
    body = text[text.index("class Gpu") :]
    assert set(re.findall(r'"(cu[A-Z]\w+)"', body)) == set(CALLS)


@without_gpu
def test_a_driver_that_is_not_there_is_told_each_time() -> None:
    for _ in range(2):
        with pytest.raises(DeviceError, match=r"no .*NVIDIA GPU.*`nvidia-smi`"):
            find_gpus()


# on a GPU ----------------------------------------------------------------------------------------------------------


class TestOnAGpu:
    pytestmark = needs_gpu

    @pytest.fixture(scope="class")
    def session(self, plan: Component) -> Iterator[Any]:
        opened = RUNTIME.open(plan, Device("cuda"), Options())
        yield opened
        opened.close()

    @pytest.fixture
    def inputs(self) -> Callable[..., dict[str, np.ndarray]]:
        from vitrify.proof.parity import sample_inputs

        return lambda component, check=0: sample_inputs(component, component.details["checks"][check], seed=check)

    def test_probe_lists_the_gpus(self) -> None:
        probe = RUNTIME.probe()
        assert probe.devices == tuple(f"cuda:{g.index}" for g in GPUS)
        assert [g["name"] for g in probe.details["gpus"]] == [g.name for g in GPUS]
        assert probe.problem == ""

    @pytest.mark.parametrize("check", [0, 1])
    def test_a_classifier_equals_the_librarys(
        self, session: Any, plan: Component, vit_model: Any, inputs: Any, same: Any, check: int
    ) -> None:
        given = inputs(plan, check)
        same(session.run(given), vit_model.reference(given))

    def test_a_unet_equals_the_librarys_at_two_sizes(
        self, unet_plan: Component, unet_model: Any, inputs: Any, same: Any
    ) -> None:
        session = RUNTIME.open(unet_plan, Device("cuda"), Options())
        for check in (0, 1, 0):
            given = inputs(unet_plan, check)
            same(session.run(given), unet_model.reference(given))
        session.close()

    def test_placement_names_the_gpu(self, session: Any) -> None:
        assert session.placement.device == "cuda:0"
        assert session.placement.provider == GPUS[0].name

    def test_outputs_belong_to_the_caller(self, session: Any, plan: Component, inputs: Any) -> None:
        first = session.run(inputs(plan))["logits"]
        kept = first.copy()
        first[...] = 7
        np.testing.assert_array_equal(session.run(inputs(plan))["logits"], kept)

    def test_a_size_outside_the_plan_is_refused(self, session: Any) -> None:
        with pytest.raises(BadInput, match=r"batch = \d+; its plan was built for"):
            session.run({"pixel_values": np.zeros((1000, 3, 8, 8), np.float32)})

    def test_a_closed_session_says_so(self, plan: Component, inputs: Any) -> None:
        session = RUNTIME.open(plan, Device("cuda"), Options())
        session.close()
        session.close()
        with pytest.raises(RuntimeFailure, match=r"session of model is closed.*Open it again"):
            session.run(inputs(plan))

    def test_a_gpu_that_is_not_there_is_refused(self, plan: Component) -> None:
        with pytest.raises(DeviceError, match=r"no cuda:63 here; TensorRT-RTX has cuda:0"):
            RUNTIME.open(plan, Device("cuda", 63), Options())

    def test_a_damaged_plan_is_refused(self, plan: Component, tmp_path: Path) -> None:
        component = replace(plan, root=tmp_path)
        component.graph_path.parent.mkdir()
        component.graph_path.write_bytes(plan.graph_path.read_bytes()[:5000])
        with pytest.raises((BadArtifact, DeviceError)):
            RUNTIME.open(component, Device("cuda"), Options())
