"""From a folder to a pipeline: damaged manifests, the runtime that is named, the device that is chosen."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.device import Device
from vitrify.core.errors import BadArtifact, DeviceError, RuntimeFailure, UsageError, VitrifyError
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options, Probe
from vitrify.runtimes.preference import preferred

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))

# A package of its own, as docs/adding-a-runtime.md says: ONNX Runtime on the CPU under the names of several devices,
# some of which do not open.
ADAPTER = """
from dataclasses import replace
from vitrify.core.device import Device
from vitrify.core.errors import DeviceError, RuntimeFailure
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options, Probe
from vitrify.runtimes.preference import preferred

class Crowded:
    name = "crowded"
    formats = ("onnx",)
    devices = {devices!r}
    problem = {problem!r}

    def probe(self):
        return Probe(self.name, "1.0", tuple(self.devices), {{}}, self.problem, "Ask its maker.")

    def open(self, component, device, options, overrides=None):
        error = self.devices[str(device)]
        if error:
            kinds = {{"DeviceError": DeviceError, "RuntimeFailure": RuntimeFailure}}
            raise kinds[error](f"{{device}} is full.", "Wait.")
        session = load_runtime("onnx").open(component, Device("cpu"), options, overrides)
        session.placement = replace(session.placement, runtime=self.name, device=str(device))
        return session

RUNTIME = Crowded()
"""


@pytest.fixture
def crowded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """crowded({"cuda:0": "RuntimeFailure", "cpu": ""}) installs the adapter with these devices."""

    def install(devices: dict[str, str], problem: str = "") -> None:
        folder = tmp_path / "site"
        (folder / "crowded-1.0.dist-info").mkdir(parents=True)
        (folder / "crowded_adapter.py").write_text(ADAPTER.format(devices=devices, problem=problem))
        (folder / "crowded-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: crowded\nVersion: 1.0\n")
        entry = "[vitrify.runtimes]\ncrowded = crowded_adapter:RUNTIME\n"
        (folder / "crowded-1.0.dist-info/entry_points.txt").write_text(entry)
        monkeypatch.syspath_prepend(str(folder))

    yield install
    sys.modules.pop("crowded_adapter", None)


def told(artifact: Path, **options: Any) -> tuple[str, str]:
    """What `load` says of its choice, and the device that the model then ran on."""
    said: list[str] = []
    pipeline: Any = vitrify.load(artifact, say=said.append, **options)
    device = pipeline.run([PICTURE]).placement["model"]["device"]
    pipeline.close()
    return " ".join(said), device


@pytest.mark.parametrize("error", ["RuntimeFailure", "DeviceError"])
def test_the_next_device_is_taken_where_one_does_not_open(
    emotions_artifact: Path, crowded: Callable[..., None], error: str
) -> None:
    crowded({"cpu": "", "cuda:0": error, "cuda:1": ""})
    said, device = told(emotions_artifact, runtime="crowded")
    assert device == "cuda:1"
    assert said == "cuda:1 with crowded 1.0 (cuda:0 did not open: cuda:0 is full.)"


@pytest.mark.parametrize(("error", "kind"), [("RuntimeFailure", RuntimeFailure), ("DeviceError", DeviceError)])
def test_the_last_devices_error_is_told(
    emotions_artifact: Path, crowded: Callable[..., None], error: str, kind: type[VitrifyError]
) -> None:
    crowded({"cuda": "RuntimeFailure", "cpu": error})
    with pytest.raises(kind, match="cpu is full"):
        vitrify.load(emotions_artifact, runtime="crowded")


def test_a_device_of_a_kind_without_rank_is_tried_before_the_cpu(
    emotions_artifact: Path, crowded: Callable[..., None]
) -> None:
    crowded({"cpu": "", "npu": ""})
    assert told(emotions_artifact, runtime="crowded")[1] == "npu"


def test_no_device_is_an_error_of_the_device_and_says_why(
    emotions_artifact: Path, crowded: Callable[..., None]
) -> None:
    crowded({}, problem="Its driver is missing.")
    with pytest.raises(
        DeviceError, match=r"No device is usable with crowded\. crowded: Its driver is missing\."
    ) as caught:
        vitrify.load(emotions_artifact, runtime="crowded")
    assert (caught.value.exit_code, caught.value.fix) == (5, "Ask its maker.")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ([("cpu", "cuda"), ("cpu", "cuda:0")], ["cuda:0", "cpu"]),
        ([("cuda", "cpu"), ("cpu", "cuda:0", "cuda:1")], ["cuda:0", "cuda:1", "cpu"]),
        ([("cuda:0", "cpu"), ("cpu", "cuda:1")], ["cpu"]),
        ([("cpu", "GPU.0", "NPU")], ["gpu:0", "npu", "cpu"]),
        ([("cpu", "cuda"), ("cpu",)], ["cpu"]),
        ([("cuda",), ("cpu",)], []),
        ([("cpu", "auto")], ["cpu"]),
    ],
)
def test_devices_of_two_runtimes_are_compared_by_kind(listed: list[tuple[str, ...]], expected: list[str]) -> None:
    assert preferred([Probe(str(n), "1", devices) for n, devices in enumerate(listed)]) == [
        Device.parse(name) for name in expected
    ]


def test_components_run_where_they_are_placed(diffusion_artifact: Path, crowded: Callable[..., None]) -> None:
    crowded({"cpu": "", "cuda:0": "", "npu": ""})
    said: list[str] = []
    plain: Any = vitrify.load(diffusion_artifact, "cpu", runtime="crowded")
    spread: Any = vitrify.load(
        diffusion_artifact, runtime="crowded", place={"vae": "cpu", "text_encoder": "npu"}, say=said.append
    )
    ran = spread.generate("a red apple", steps=2, seed=1)
    where = {name: one["device"] for name, one in ran.placement.items()}
    assert where == {"text_encoder": "npu", "unet": "cuda:0", "vae_decoder": "cpu"}
    assert "cuda:0 with crowded 1.0" in said[-1]
    assert "text_encoder on npu, as it was placed" in said[-1]
    np.testing.assert_array_equal(
        np.asarray(ran.images[0]), np.asarray(plain.generate("a red apple", steps=2, seed=1).images[0])
    )
    plain.close()
    spread.close()


def test_a_place_that_is_not_there_is_an_error(
    diffusion_artifact: Path, vitrify: Callable[..., Any], tmp_path: Path
) -> None:
    asked = ["generate", diffusion_artifact, "an owl", "-o", tmp_path / "a.png", "--steps", 1, "--json"]
    done = vitrify(*asked, "--place", "vae=cuda:0")
    assert (done.code, done.error["code"]) == (5, "device")
    assert "cuda:0" in done.error["what"]
    assert vitrify(*asked, "--place", "transformer=cpu").code == 2
    done = vitrify(*asked, "--place", "vae=cpu,unet=cpu")
    assert done.code == 0, done.err
    assert {one["device"] for one in done.json["placement"].values()} == {"cpu"}


def test_an_option_that_no_runtime_takes_is_refused(emotions_artifact: Path) -> None:
    with pytest.raises(UsageError, match="onnx has no option compile"):
        vitrify.load(emotions_artifact, "cpu", options=Options(compile="whole"))


def test_a_runtime_that_is_named_runs(emotions_artifact: Path) -> None:
    pipeline: Any = vitrify.load(emotions_artifact, "cpu", runtime="onnx")
    assert pipeline.placement["model"]["runtime"] == "onnx"
    pipeline.close()


@pytest.mark.parametrize(("runtime", "what"), [("torch", "opens torch components, not onnx"), ("abacus", "abacus")])
def test_a_runtime_that_does_not_open_the_format_is_refused(emotions_artifact: Path, runtime: str, what: str) -> None:
    for device in ("cpu", None):
        with pytest.raises(UsageError, match=what):
            vitrify.load(emotions_artifact, device, runtime=runtime)


def damaged(artifact: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(artifact, target)
    manifest = json.loads((target / "artifact.json").read_text())
    change(manifest["pipeline"])
    (target / "artifact.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("labels"),
        lambda p: p.update(labels=7),
        lambda p: p.pop("function"),
        lambda p: p.update(function="argmax"),
        lambda p: p.update(preprocess=None),
        lambda p: p.update(family=["image-classification"]),
    ],
)
def test_a_classifiers_damaged_manifest_is_refused(
    emotions_artifact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    with pytest.raises(BadArtifact):
        vitrify.load(damaged(emotions_artifact, tmp_path / "copy", change), "cpu")


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("vae"),
        lambda p: p["vae"].update(scaling_factor="much"),
        lambda p: p["vae"].update(scaling_factor=0),
        lambda p: p["latents"].update(scale=0),
        lambda p: p["latents"].update(channels=float("inf")),
        lambda p: p.update(size=[64]),
        lambda p: p.update(size=None),
        lambda p: p.pop("scheduler"),
        lambda p: p.update(scheduler="ddim"),
        lambda p: p["files"].pop("tokenizer"),
    ],
)
def test_a_diffusion_models_damaged_manifest_is_refused(
    diffusion_artifact: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    with pytest.raises(BadArtifact):
        vitrify.load(damaged(diffusion_artifact, tmp_path / "copy", change), "cpu")


def test_the_command_line_takes_a_runtime_and_refuses_tasks_that_are_no_list(
    vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    PICTURE.save(tmp_path / "one.png")
    done = vitrify("classify", emotions_artifact, tmp_path / "one.png", "--runtime", "onnx", "--json")
    assert done.code == 0, done.err
    refused = vitrify("classify", emotions_artifact, tmp_path / "one.png", "--runtime", "torch", "--json")
    assert (refused.code, refused.error["code"]) == (2, "usage")
    broken = damaged(emotions_artifact, tmp_path / "copy", lambda p: p.update(tasks=None))
    done = vitrify("classify", broken, tmp_path / "one.png", "--json")
    assert done.code in (2, 6), done.err
    assert "Traceback" not in done.err


def without_a_graph(artifact: Path, target: Path, name: str) -> Path:
    """A copy in which a component's graph is something else of the same size."""
    shutil.copytree(artifact, target)
    graph = target / name / "model.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    return target


def test_what_does_not_open_is_told_by_load(diffusion_artifact: Path, tmp_path: Path) -> None:
    broken = without_a_graph(diffusion_artifact, tmp_path / "copy", "vae_decoder")
    for device in ("cpu", None):
        with pytest.raises(BadArtifact, match="vae_decoder"):
            vitrify.load(broken, device)


def test_with_beside_it_is_told_by_the_call_that_needs_it(diffusion_artifact: Path, tmp_path: Path) -> None:
    broken = without_a_graph(diffusion_artifact, tmp_path / "copy", "vae_decoder")
    steps: list[Any] = []
    pipeline: Any = vitrify.load(broken, "cpu", beside=True)
    with pytest.raises(BadArtifact, match="vae_decoder"):
        pipeline.generate("a red apple", steps=2, seed=1, on_step=steps.append)
    assert len(steps) == 2
    pipeline.close()


def test_components_that_open_beside_each_other_draw_the_same(diffusion_artifact: Path) -> None:
    soon: Any = vitrify.load(diffusion_artifact, beside=True)
    drawn = soon.generate("a red apple", steps=2, seed=1)
    assert list(drawn.placement) == ["text_encoder", "unet", "vae_decoder"]
    soon.close()
    whole: Any = vitrify.load(diffusion_artifact)
    assert list(whole.sessions) == ["text_encoder", "unet", "vae_decoder"], "open before it was asked for"
    np.testing.assert_array_equal(
        np.asarray(drawn.images[0]), np.asarray(whole.generate("a red apple", steps=2, seed=1).images[0])
    )
    whole.close()


@pytest.mark.parametrize("how", [{}, {"beside": True}, {"offload": "components"}], ids=["ready", "soonest", "in turn"])
def test_what_is_opened_for_one_call_compiles_its_sizes_alone(diffusion_artifact: Path, how: dict[str, Any]) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    made = load_runtime("openvino").compiled  # by this process until now
    pipeline: Any = vitrify.load(
        diffusion_artifact, "cpu", runtime="openvino", options=Options(threads=1, static=True), **how
    )
    pipeline.generate("a red apple", width=64, height=64, steps=1, seed=1)
    pipeline.close()
    assert load_runtime("openvino").compiled - made == (3 if how else 6), "the usual sizes too, where it is ready"


def test_one_that_was_never_needed_is_closed_too(diffusion_artifact: Path) -> None:
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", beside=True)
    pipeline.close()
    assert list(pipeline.sessions) == []
    assert not any(pipeline.sessions.is_coming(name) for name in ("text_encoder", "unet", "vae_decoder"))


def test_with_beside_the_next_device_is_taken_all_the_same(
    diffusion_artifact: Path, crowded: Callable[..., None]
) -> None:
    crowded({"cpu": "", "cuda:0": "DeviceError"})
    pipeline: Any = vitrify.load(diffusion_artifact, runtime="crowded", beside=True)
    assert {one["device"] for one in pipeline.generate("a red apple", steps=1).placement.values()} == {"cpu"}
    pipeline.close()
