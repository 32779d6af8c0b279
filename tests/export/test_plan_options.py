"""What a plan is built with: choices that a library lacks are refused with a reason, the others reach it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
pytest.importorskip("onnx", reason="needs vitrify[export]")

from vitrify.core.artifact import Artifact, Component  # noqa: E402
from vitrify.core.cache import Cache  # noqa: E402
from vitrify.core.errors import BadInput, UsageError  # noqa: E402
from vitrify.export.compile import CompileJob  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402
from vitrify.export.plan_options import COMPATIBILITY, FLAVOURS, PlanOptions  # noqa: E402
from vitrify.export.plan_timing import KIND, keep_timings, timing_key, use_timings  # noqa: E402
from vitrify.export.quantize import quantize_weights  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.runtimes.cuda import Gpu  # noqa: E402
from vitrify.runtimes.trt import rebuild  # noqa: E402


@pytest.fixture(scope="module")
def labels_source(emotions_artifact: Path) -> Component:
    return Artifact.load(emotions_artifact).components["model"]


@pytest.mark.parametrize(
    ("flavour", "options", "said"),
    [
        ("tensorrt-rtx", {"hardware_compatible": "ampere+"}, r"no --hardware-compatible.*use --compute-capability"),
        ("tensorrt-rtx", {"timing_cache": True}, r"no --timing-cache.*times no kernels"),
        ("tensorrt-rtx", {"optimization_level": 0}, r"no --optimization-level.*change nothing"),
        ("tensorrt", {"hardware_compatible": "ada+"}, r"hardware-compatible is 'ada\+'.*none, ampere\+"),
        ("tensorrt", {"optimization_level": 6}, r"optimization-level is 6.*0 to 5"),
        ("tensorrt", {"workspace": 0}, r"workspace is 0"),
        ("tensorrt", {"apart": True, "strip": True}, r"--strip has none.*one of the two"),
        ("tensorrt", {"apart": True, "refit": True}, r"--refit has none"),
        ("tensorrt", {"apart": True, "weight_streaming": True}, r"--weight-streaming has none"),
    ],
)
def test_what_a_library_lacks_is_refused_with_a_reason(flavour: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        PlanOptions(**options).check(flavour)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_usual_choices_are_both_libraries(flavour: str) -> None:
    for options in (PlanOptions(), PlanOptions("bfloat16", refit=True), PlanOptions(apart=True, workspace=1 << 30)):
        options.check(flavour)
    PlanOptions(hardware_compatible="ampere+", timing_cache=False, optimization_level=0).check("tensorrt")


def test_levels_of_compatibility_are_the_librarys() -> None:
    assert set(COMPATIBILITY.values()) == set(trt.HardwareCompatibilityLevel.__members__)


def test_arguments_build_the_same_plan_again(monkeypatch: pytest.MonkeyPatch, emotions_artifact: Path) -> None:
    """Through the command line itself, up to the job that it would run."""
    from vitrify import cli
    from vitrify.export import compile as compiling

    class StopError(Exception):
        pass

    made: list[PlanOptions] = []

    def stop(job: CompileJob) -> None:
        made.append(job.plan)
        raise StopError

    monkeypatch.setattr(compiling.CompileJob, "run", stop)
    given = [
        ("tensorrt-rtx", PlanOptions("bfloat16", "8.6,8.9", weight_streaming=True, workspace=1 << 20)),
        ("tensorrt-rtx", PlanOptions(apart=True)),
        ("tensorrt", PlanOptions("float16", refit=True, strip=True, hardware_compatible="same-capability",
                                 timing_cache=False, optimization_level=5)),
    ]  # fmt: skip
    for target, options in given:
        arguments = ["compile", str(emotions_artifact), "--to", target, "-o", "x", *options.arguments()]
        CliRunner().invoke(cli.app, arguments)
        assert made.pop() == options
    assert PlanOptions().arguments() == []


def test_choices_reach_the_library_and_its_word_reaches_the_manifest(labels_source: Component, tmp_path: Path) -> None:
    plain = build_plan(labels_source, tmp_path / "plain")
    streamed = build_plan(labels_source, tmp_path / "streamed", options=PlanOptions(weight_streaming=True))
    large = build_plan(labels_source, tmp_path / "large", options=PlanOptions(workspace=1 << 30))
    assert plain.details["engine"]["flags"] == []
    assert streamed.details["engine"]["flags"] == ["WEIGHT_STREAMING"]
    assert large.details["engine"]["workspace"] == 1 << 30
    assert plain.details["engine"]["workspace"] != 1 << 30
    one, two = plain.graph_path.read_bytes(), streamed.graph_path.read_bytes()
    assert len(one) == len(two)
    assert 0 < sum(a != b for a, b in zip(one, two, strict=True)) < 100, "a flag of the plan, and nothing else"
    with pytest.raises(BadInput, match=r"workspace limit"):
        build_plan(labels_source, tmp_path / "small", options=PlanOptions(workspace=1 << 10))


def test_the_manifest_holds_what_the_library_read_back(labels_source: Component, tmp_path: Path) -> None:
    plan = build_plan(labels_source, tmp_path)
    engine = plan.details["engine"]
    assert engine["layers"] == sum(engine["kinds"].values()) > 100
    assert engine["bytes"] == plan.weights[0].bytes == plan.graph_path.stat().st_size
    assert engine["header"] == {"mark": "vtrt", "bytes": engine["bytes"], "version": trt.__version__}
    assert engine["inspector"] == "not read: needs a GPU"
    for name, spec in plan.inputs.items():
        told = engine["inputs"][name]
        assert told["dtype"] == spec.dtype
        assert told["shape"] == [-1 if isinstance(d, str) else d for d in spec.shape]
        sizes = [[plan.shapes[d][k] if isinstance(d, str) else d for d in spec.shape] for k in range(3)]
        assert [told["min"], told["opt"], told["max"]] == sizes
    assert set(engine["outputs"]) == set(plan.outputs)


def test_a_plan_is_built_again_with_its_own_choices(labels_source: Component, tmp_path: Path) -> None:
    small = quantize_weights(labels_source, recipe("int8-weights:keep=fc1"), tmp_path / "onnx")
    options = PlanOptions("float16", "8.6", weight_streaming=True)
    plan = build_plan(small, tmp_path / "plan", options=options)
    command = "vitrify compile ARTIFACT --to tensorrt-rtx --quant int8-weights:keep=fc1 --precision float16 "
    assert rebuild(plan).endswith(f"{command}--compute-capability 8.6 --weight-streaming -o DIR")
    assert rebuild(plan, capability="8.9").endswith(f"{command}--compute-capability 8.9 --weight-streaming -o DIR")
    other = replace(plan, details={}, precision={"recipe": "fp16"})
    assert rebuild(other).endswith("vitrify compile ARTIFACT --to tensorrt-rtx -o DIR")


@pytest.mark.filterwarnings("ignore:.*Timing cache operations are no-ops:DeprecationWarning")
def test_timings_are_kept_for_the_next_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TensorRT-RTX's own cache, which it still makes, reads and writes, and never fills."""
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path))
    key = timing_key("11.4.0", Gpu(0, "a GPU", (8, 6)))
    assert key != timing_key("11.4.0", Gpu(0, "a GPU", (8, 9)))
    assert key != timing_key("11.5.0", Gpu(0, "a GPU", (8, 6)))
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    for _ in range(2):
        config = builder.create_builder_config()
        use_timings(config, key)
        keep_timings(config, key)
        (entry,) = Cache().entries()
        assert (entry.kind, entry.key) == (KIND, key)
        assert (entry.path / "timing.cache").read_bytes() == bytes(config.get_timing_cache().serialize()) != b""


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_fp8_weights_build_for_gpus_that_have_it(labels_source: Component, tmp_path: Path, precision: str) -> None:
    small = quantize_weights(labels_source, recipe("fp8"), tmp_path / "onnx")
    whole = build_plan(labels_source, tmp_path / "whole", precision=precision)
    plan = build_plan(small, tmp_path / "plan", precision=precision)
    assert plan.requires["compute_capability"] == "8.9+"
    assert plan.precision["weights"] == "float8e4m3"
    assert plan.precision["activations"] == precision
    if precision == "float32":
        assert plan.weights[0].bytes < whole.weights[0].bytes - sum(w.bytes for w in labels_source.weights)
    with pytest.raises(UsageError, match=r"8\.6 have no fp8.*8\.9"):
        build_plan(small, tmp_path / "old", compute_capability="8.6,8.9")
