"""What is TensorRT's own: GPUs that are not there, plans for other GPUs, and names that the library must have.

Both libraries share their code; it is held against TensorRT-RTX, the one that installs anywhere. Their names are held
against both in test_trt_names.py.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")

from vitrify.core.artifact import Component  # noqa: E402
from vitrify.core.cache import Cache  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, DeviceError, RuntimeFailure, UsageError  # noqa: E402
from vitrify.core.registry import RUNTIMES, load_runtime, runtime_for  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402
from vitrify.export.plan_options import PlanOptions  # noqa: E402
from vitrify.runtimes import cuda, cuda_memory  # noqa: E402
from vitrify.runtimes.base import DeviceSession, Options  # noqa: E402
from vitrify.runtimes.cuda import CALLS, Gpu, find_gpus  # noqa: E402
from vitrify.runtimes.options import check_options  # noqa: E402
from vitrify.runtimes.plan_weights import plan_weights  # noqa: E402
from vitrify.runtimes.trt import fits, needs  # noqa: E402
from vitrify.runtimes.trt_engine import DTYPES, load_engine, message_log, plain, read_header  # noqa: E402
from vitrify.runtimes.trt_rtx import RUNTIME  # noqa: E402
from vitrify.runtimes.trt_session import check_range  # noqa: E402

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
def apart(vit_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(vit_model.components["onnx"], tmp_path_factory.mktemp("apart"), options=PlanOptions(apart=True))


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
        load_engine(trt, "TensorRT-RTX", plan, Gpu(0, "a GPU", (8, 6)), log, "")
    assert "_src/" not in caught.value.what
    assert log.errors


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_plan_that_cannot_be_read_is_refused(plan: Component, tmp_path: Path, damage: str) -> None:
    component = replace(plan, root=tmp_path)
    if damage == "empty":
        component.graph_path.parent.mkdir()
        component.graph_path.touch()
    with pytest.raises(BadArtifact, match=r"model/model\.plan cannot be read") as caught:
        load_engine(trt, "TensorRT-RTX", component, Gpu(0, "a GPU", (8, 6)), message_log(trt), "")
    assert caught.value.__cause__ is not None


COLLECTED = """
import gc
import tensorrt_rtx as trt
from vitrify.runtimes.trt_engine import made, message_log

class Busy(type(message_log(trt))):
    def log(self, severity, message):
        self.many = [[] for _ in range(2000)]  # so many that they are collected, the runtime of a cycle among them

class Cycle:
    def __init__(self):
        self.itself, self.runtime = self, trt.Runtime(message_log(trt))

log = Busy()
gc.collect()
gc.disable()
Cycle()
gc.enable()
made(trt.Runtime, log)
print(len(log.many), gc.isenabled())
"""


def test_what_is_collected_while_the_library_logs_does_not_wait_for_its_lock(environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COLLECTED], env=environment, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.stdout.split() == ["2000", "True"], done.stderr


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
    said = r"weights cannot be changed.*Run the artifact that it was compiled from.*--refit \(on a GPU\) or --apart"
    with pytest.raises(UsageError, match=said):
        RUNTIME.open(plan, Device("cuda"), Options(), {"classifier.bias": np.zeros(5, np.float32)})


@without_gpu
def test_changes_of_a_plan_apart_wait_for_a_gpu(apart: Component) -> None:
    with pytest.raises(DeviceError, match=r"needs an NVIDIA GPU.*--to tensorrt-rtx --apart -o DIR"):
        RUNTIME.open(apart, Device("cuda"), Options(), {"classifier.bias": np.zeros(5, np.float32)})


def test_weights_are_streamed_only_in_a_plan_that_was_built_for_it(plan: Component) -> None:
    with pytest.raises(UsageError, match=r"built without --weight-streaming.*--to tensorrt-rtx --weight-streaming"):
        RUNTIME.open(plan, Device("cuda"), Options(resident_weights=0))


def test_a_plan_computes_in_its_own_precision(plan: Component) -> None:
    with pytest.raises(UsageError, match=r"a plan that computes in float32, not in bfloat16"):
        RUNTIME.open(plan, Device("cuda"), Options(precision="bfloat16"))


def test_the_options_that_it_acts_on_are_named() -> None:
    check_options([RUNTIME], Options(cuda_graphs=True, resident_weights=1))
    with pytest.raises(UsageError, match=r"no option compile.*cuda_graphs, resident_weights"):
        check_options([RUNTIME], Options(compile="whole"))


def test_a_damaged_header_is_told_without_a_gpu(plan: Component, tmp_path: Path) -> None:
    data = plan.graph_path.read_bytes()
    path = tmp_path / "model.plan"
    path.write_bytes(data)
    assert read_header(trt, path) == plan.details["engine"]["header"]
    for damaged in (b"x" * len(data), data[:20]):
        path.write_bytes(damaged)
        with pytest.raises(BadArtifact, match=r"model\.plan is damaged"):
            read_header(trt, path)


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


def test_every_dtype_of_the_library_is_known_or_never_a_tensor() -> None:
    assert set(trt.DataType.__members__) - set(DTYPES) <= {"FP8", "INT4", "FP4", "E8M0"}
    assert set(DTYPES) <= set(trt.DataType.__members__)


def test_every_call_of_the_driver_is_declared_and_used() -> None:
    text = Path(cuda.__file__).read_text("utf-8")
    body = text[text.index("class Gpu") :] + Path(cuda_memory.__file__).read_text("utf-8")
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

    def test_tensors_stay_on_the_gpu_between_calls(self, session: Any, plan: Component, inputs: Any) -> None:
        given = inputs(plan)
        assert isinstance(session, DeviceSession)
        placed = {name: session.to_device(array) for name, array in given.items()}
        assert {t.owner for t in placed.values()} == {"tensorrt-rtx cuda:0"}
        for name, array in given.items():
            np.testing.assert_array_equal(session.to_host(placed[name]), array)
        expected = session.run(given)["logits"]
        out = session.run_on_device(placed)["logits"]
        session.run(inputs(plan, 1))  # which changes nothing of what was handed out
        np.testing.assert_array_equal(session.to_host(out), expected)
        np.testing.assert_array_equal(session.run(placed)["logits"], expected)

    def test_a_tensor_of_another_session_is_read_and_outlives_it(self, plan: Component, inputs: Any) -> None:
        first, second = (RUNTIME.open(plan, Device("cuda"), Options()) for _ in range(2))
        placed = {name: first.to_device(array) for name, array in inputs(plan).items()}
        expected = first.run(placed)["logits"]
        first.close()
        np.testing.assert_array_equal(second.run(placed)["logits"], expected)
        foreign = replace(next(iter(placed.values())), owner="onnx cuda:0")
        with pytest.raises(BadInput, match=r"lies on onnx cuda:0, expected on tensorrt-rtx cuda:0"):
            second.run({"pixel_values": foreign})
        second.close()

    def test_recorded_work_gives_the_same_at_each_size(self, unet_plan: Component, inputs: Any) -> None:
        plain, recorded = (RUNTIME.open(unet_plan, Device("cuda"), Options(cuda_graphs=on)) for on in (False, True))
        for check in (0, 0, 0, 1, 1, 1, 0, 1):
            given = inputs(unet_plan, check)
            (expected,), (got,) = plain.run(given).values(), recorded.run(given).values()
            np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)
            placed = {name: recorded.to_device(array) for name, array in given.items()}
            (kept,) = recorded.run_on_device(placed).values()
            np.testing.assert_allclose(recorded.to_host(kept), expected, rtol=0, atol=1e-6)
        for one in (plain, recorded):
            one.close()

    def test_sessions_compute_in_one_block_in_turn(
        self, plan: Component, unet_plan: Component, vit_model: Any, unet_model: Any, inputs: Any, same: Any
    ) -> None:
        small, large = (RUNTIME.open(p, Device("cuda"), Options()) for p in (plan, unet_plan))
        assert small._opened.activations is large._opened.activations
        with ThreadPoolExecutor(2) as pool:
            for check in (0, 1, 0):
                runs = [pool.submit(s.run, inputs(p, check)) for s, p in ((small, plan), (large, unet_plan))]
                for run, model, component in zip(runs, (vit_model, unet_model), (plan, unet_plan), strict=True):
                    same(run.result(), model.reference(inputs(component, check)))
        small.close()
        large.close()

    @pytest.mark.parametrize("resident", [0, 10_000, 1 << 40])
    def test_weights_are_streamed(self, vit_model: Any, tmp_path: Path, inputs: Any, same: Any, resident: int) -> None:
        built = build_plan(vit_model.components["onnx"], tmp_path, options=PlanOptions(weight_streaming=True))
        session = RUNTIME.open(built, Device("cuda"), Options(resident_weights=resident))
        same(session.run(inputs(built)), vit_model.reference(inputs(built)))
        session.close()

    @pytest.mark.parametrize("how", ["refit", "strip", "apart"])
    def test_weights_change_and_nothing_of_it_is_left(
        self, vit_model: Any, tmp_path: Path, inputs: Any, same: Any, how: str
    ) -> None:
        """Each opening starts from the base weights."""
        built = build_plan(vit_model.components["onnx"], tmp_path, options=PlanOptions(**{how: True}))
        given, table = inputs(built), plan_weights(built)
        rng = np.random.default_rng(1)
        names = [name for name, weight in table.items() if len(weight.shape) == 2]
        for changed in ({}, {n: rng.normal(0, 0.2, table[n].shape).astype(np.float32) for n in names[:3]}, {}):
            session = RUNTIME.open(built, Device("cuda"), Options(), changed)
            same(session.run(given), vit_model.reference(given, changed))
            session.close()
        with pytest.raises(BadInput, match=r"no such weight"):
            RUNTIME.open(built, Device("cuda"), Options(), {"nothing.weight": np.zeros((2, 2), np.float32)})

    def test_kernels_are_kept_in_the_cache(
        self, plan: Component, inputs: Any, same: Any, vit_model: Any, tmp_path: Path, monkeypatch: Any
    ) -> None:
        monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path))
        for _ in range(2):
            session = RUNTIME.open(plan, Device("cuda"), Options(cache=True))
            same(session.run(inputs(plan)), vit_model.reference(inputs(plan)))
            session.close()
            (entry,) = Cache().entries()
            assert entry.kind == "tensorrt-rtx-kernels"
            assert entry.bytes > 0

    def test_a_damaged_plan_is_refused(self, plan: Component, tmp_path: Path) -> None:
        component = replace(plan, root=tmp_path)
        component.graph_path.parent.mkdir()
        component.graph_path.write_bytes(plan.graph_path.read_bytes()[:5000])
        with pytest.raises((BadArtifact, DeviceError)):
            RUNTIME.open(component, Device("cuda"), Options())
