"""Plans: built for real, on the CPU, from the models' graphs; what is wrong is told. Nothing here runs them."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")
onnx = pytest.importorskip("onnx", reason="needs vitrify[export]")
ml_dtypes = pytest.importorskip("ml_dtypes", reason="needs vitrify[export]")


from vitrify.core.artifact import Artifact, Component, hash_file  # noqa: E402
from vitrify.core.errors import BadArtifact, BadInput, MissingDependency, UsageError  # noqa: E402
from vitrify.core.progress import Event  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.plan import build_plan  # noqa: E402

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def vit_plan(vit_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    return build_plan(vit_model.components["onnx"], tmp_path_factory.mktemp("plan"))


@pytest.fixture(scope="module")
def unet_plan(unet_model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Component, list[Event]]:
    """Three inputs, one without dims, four symbols; and what its build told."""
    events: list[Event] = []
    plan = build_plan(unet_model.components["onnx"], tmp_path_factory.mktemp("plan"), report=events.append)
    return plan, events


def test_a_plan_describes_itself(unet_model: Any, unet_plan: tuple[Component, list[Event]]) -> None:
    source, plan = unet_model.components["onnx"], unet_plan[0]
    assert (plan.name, plan.format, plan.graph) == ("unet", "tensorrt-rtx", "unet/model.plan")
    assert plan.graph_path.is_file()
    assert [p.name for p in plan.graph_path.parent.iterdir()] == ["model.plan"]
    (weight,) = plan.weights
    data = plan.graph_path.read_bytes()
    assert (weight.path, weight.bytes, weight.sha256) == (plan.graph, len(data), hashlib.sha256(data).hexdigest())
    assert dict(plan.inputs) == dict(source.inputs)
    assert dict(plan.outputs) == dict(source.outputs)
    assert dict(plan.shapes) == dict(source.shapes)
    assert plan.precision == {"recipe": "fp32", "weights": "float32", "activations": "float32"}
    assert plan.requires == {
        "runtime": f"tensorrt-rtx=={trt.__version__}",
        "os": None,
        "compute_capability": "8.0+",
    }
    assert plan.proof == {"graph": "not run", "weights": "not run", "numeric": "not run"}
    assert plan.details["source"]["graph"] == hash_file(source.graph_path)
    assert plan.details["kind"] == source.details["kind"]


def test_its_manifest_is_loaded_with_checksums(vit_plan: Component, tmp_path: Path) -> None:
    root = tmp_path / "artifact"
    shutil.copytree(vit_plan.root, root)
    told = (
        {"architecture": "ViT", "source": "here"},
        {"family": "image-classification", "tasks": ["image-classification"]},
    )
    Artifact(root, "id", *told, {"model": vit_plan}).save()
    loaded = Artifact.load(root, checksums=True).components["model"]
    assert replace(loaded, root=vit_plan.root) == vit_plan
    path = root / vit_plan.graph
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"is not the file that was built"):
        Artifact.load(root, checksums=True)


def test_a_plan_is_an_engine_of_its_sizes_and_gpus(vit_model: Any, tmp_path: Path) -> None:
    """Without a GPU no engine opens: its header, and what differs between builds, is what can be read of it here."""
    source = replace(vit_model.components["onnx"], shapes={"batch": (1, 3, 12_345)})
    targets = {"all": None, "again": None, "ampere": "8.6", "both": "8.6,8.9"}
    plans = {n: build_plan(source, tmp_path / n, compute_capability=t) for n, t in targets.items()}
    data = {n: p.graph_path.read_bytes() for n, p in plans.items()}
    header = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR)).engine_header_size
    heads = {n: d[:16] + d[24:header] for n, d in data.items()}  # 16 to 24 is the plan's size
    assert {d[:4] for d in data.values()} == {b"vtrt"}
    assert heads["all"] == heads["again"]
    assert len(set(heads.values())) == 3
    assert [p.requires["compute_capability"] for p in plans.values()] == ["8.0+", "8.0+", "8.6", "8.6,8.9"]
    most = (12_345).to_bytes(8, "little")
    assert all(most in d for d in data.values())
    assert most not in build_plan(vit_model.components["onnx"], tmp_path / "less").graph_path.read_bytes()


def test_the_built_in_classifier_builds(emotions_artifact: Path, tmp_path: Path) -> None:
    source = Artifact.load(emotions_artifact).components["model"]
    single = build_plan(source, tmp_path / "float32")
    half = build_plan(source, tmp_path / "float16", precision="float16")
    stored = sum(w.bytes for w in source.weights)  # in float16
    assert single.weights[0].bytes > 2 * stored
    assert stored < half.weights[0].bytes < single.weights[0].bytes - 0.8 * stored
    assert half.precision == {"recipe": "fp16", "weights": "float16", "activations": "float16"}


def test_progress_grows_to_its_end(unet_plan: tuple[Component, list[Event]]) -> None:
    done = [e.done for e in unet_plan[1]]
    assert {(e.stage, e.total, e.unit) for e in unet_plan[1]} == {("build unet", 100, "%")}
    assert done == sorted(set(done))
    assert len(done) > 2
    assert done[-1] == 100


def test_a_vae_stays_in_float32(vit_model: Any, vit_plan: Component, tmp_path: Path) -> None:
    source = vit_model.components["onnx"]
    vae = replace(source, details=source.details | {"kind": "vae_decoder"})
    events: list[Event] = []
    built = build_plan(vae, tmp_path, precision="float16", report=events.append)
    assert built.precision["activations"] == "float32"
    assert abs(built.weights[0].bytes - vit_plan.weights[0].bytes) < 1000
    assert [e.note for e in events if e.note] == ["model stays in float32: in float16 it is black."]


def copied(component: Component, tmp_path: Path) -> Component:
    shutil.copytree(component.root, tmp_path / "copy")
    return replace(component, root=tmp_path / "copy")


def test_a_graph_without_types_is_not_put_into_float16(vit_model: Any, tmp_path: Path) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    model = onnx.load(source.graph_path, load_external_data=False)
    del model.graph.value_info[:]
    onnx.save(model, source.graph_path)
    with pytest.raises(BadInput, match=r"cannot be put into float16: it does not say the type of .*in float32"):
        build_plan(source, tmp_path / "out", precision="float16")


@pytest.mark.parametrize("damage", ["missing", "half", "noise"])
def test_a_damaged_graph_is_refused(vit_model: Any, tmp_path: Path, damage: str) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    data = source.graph_path.read_bytes()
    source.graph_path.unlink()
    if damage != "missing":
        source.graph_path.write_bytes(data[: len(data) // 2] if damage == "half" else RNG.bytes(len(data)))
    with pytest.raises(BadArtifact if damage == "missing" else BadInput) as caught:
        build_plan(source, tmp_path / "out")
    assert source.graph in caught.value.what
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "half"])
def test_damaged_weights_are_refused(vit_model: Any, tmp_path: Path, damage: str) -> None:
    source = copied(vit_model.components["onnx"], tmp_path)
    path = source.root / source.weights[0].path
    data = path.read_bytes()
    path.unlink()
    if damage == "half":
        path.write_bytes(data[: len(data) // 2])
    with pytest.raises(BadInput, match=r"cannot read model/model\.onnx"):
        build_plan(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: {"inputs": {"pixels": next(iter(c.inputs.values()))}}, r"has the inputs pixel_values; the manifest"),
        (lambda c: {"outputs": {}}, r"has the outputs logits; the manifest says"),
        (lambda c: {"inputs": {"pixel_values": TensorSpec(DType.INT64, ("batch", 3, 8, 8))}}, r"is float32 .*int64"),
        (lambda c: {"inputs": {"pixel_values": TensorSpec(DType.FLOAT32, ("batch", 3, 8, 9))}}, r"\[.*8, 9\]"),
        (lambda c: {"shapes": {}}, r"gives no sizes for batch of pixel_values"),
        (lambda c: {"shapes": {"batch": (4, 2, 8)}}, r"MIN<=OPT<=MAX"),
        (lambda c: {"format": "openvino"}, r"plans are made from onnx"),
    ],
    ids=["input", "output", "dtype", "shape", "no sizes", "sizes", "format"],
)
def test_a_manifest_that_is_wrong_is_told(
    vit_model: Any, tmp_path: Path, change: Callable[[Any], dict[str, Any]], said: str
) -> None:
    source = vit_model.components["onnx"]
    with pytest.raises(BadInput, match=said):
        build_plan(replace(source, **change(source)), tmp_path)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"flavour": "tensorrt-lite"}, r"no 'tensorrt-lite'.*tensorrt-rtx or tensorrt"),
        ({"precision": "float8"}, r"float32, float16 or bfloat16, not float8"),
        ({"compute_capability": "9.9"}, r"9\.9 is no compute capability.*7\.5, 8\.0, 8\.6"),
        ({"compute_capability": "8.6,"}, r"8\.6, is no compute capability"),
        ({"compute_capability": "86"}, r"86 is no compute capability"),
    ],
)
def test_options_that_do_not_exist(vit_model: Any, tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        build_plan(vit_model.components["onnx"], tmp_path, **options)


def test_turing_wants_float16(vit_model: Any, tmp_path: Path) -> None:
    source = vit_model.components["onnx"]
    with pytest.raises(BadInput, match=r"Turing.*another precision"):
        build_plan(source, tmp_path, compute_capability="7.5")
    assert list((tmp_path / "model").iterdir()) == []
    assert build_plan(source, tmp_path, precision="float16", compute_capability="7.5").graph_path.is_file()


def test_ctrl_c_ends_a_build_and_leaves_nothing(unet_model: Any, tmp_path: Path) -> None:
    timers: list[threading.Timer] = []

    def interrupt(event: Event) -> None:
        if not timers:
            timers.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)))
            timers[0].start()

    with pytest.raises(KeyboardInterrupt):
        build_plan(unet_model.components["onnx"], tmp_path, report=interrupt)
    assert list((tmp_path / "unet").iterdir()) == []
    assert [t.name for t in threading.enumerate() if t.name.startswith("build")] == []


def test_an_old_plan_survives_a_build_that_fails(unet_model: Any, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    def stop(event: Event) -> None:
        raise StopError

    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/model.plan").write_bytes(b"old")
    with pytest.raises(StopError):
        build_plan(unet_model.components["onnx"], tmp_path, report=stop)
    assert [p.read_bytes() for p in (tmp_path / "unet").iterdir()] == [b"old"]


SMALL_DISK = """
import resource, sys
from pathlib import Path
from vitrify.core.artifact import Artifact
from vitrify.core.errors import DiskError
from vitrify.export.plan import build_plan
component = Artifact.load(Path(sys.argv[1])).components["model"]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    build_plan(component, Path(sys.argv[2]))
except DiskError as exc:
    print(exc.what)
"""


def test_a_disk_that_refuses_the_plan_is_told(python: Any, emotions_artifact: Path, tmp_path: Path) -> None:
    ran = python(SMALL_DISK, emotions_artifact, tmp_path)
    assert ran.out.startswith(f"Writing {tmp_path} failed"), ran.err
    assert list((tmp_path / "model").iterdir()) == []


def test_tensorrt_itself_is_asked_for_by_its_extra(vit_model: Any, tmp_path: Path) -> None:
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(MissingDependency, match=r'needs tensorrt.*pip install "vitrify\[tensorrt\]"'):
            build_plan(vit_model.components["onnx"], tmp_path, flavour="tensorrt")
    else:
        pytest.skip("tensorrt is installed")
