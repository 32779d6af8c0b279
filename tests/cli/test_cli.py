"""The command line from end to end: what a user types, what lies there afterwards, what is printed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

import vitrify as package
from vitrify.cli_doctor import doctor
from vitrify.pipelines.images import read_parameters
from vitrify.runtimes import doctor as doctor_room


def test_doctor_shows_the_machine_and_its_runtimes(vitrify: Callable[..., Any]) -> None:
    done = vitrify("doctor", "--json")
    assert done.code == 0, done.err
    found = done.json
    assert found["runtimes"]["onnx"]["usable"] is True
    assert "cpu" in found["runtimes"]["onnx"]["devices"]
    devices = {row["device"].partition(":")[0]: row for row in found["devices"]}
    assert {"runtime": "onnx", "provider": "cpu"} in devices["cpu"]["runs"]
    for row in devices.values():
        assert row["runs"] or row["what"], "a device that nothing runs says why"
    assert found["chosen"]["onnx"]["device"] in found["runtimes"]["onnx"]["devices"]
    providers = {p["name"]: p for p in found["runtimes"]["onnx"]["details"]["providers"]}
    assert (providers["cpu"]["usable"], providers["cpu"]["opened"]) == (True, ["cpu"])
    assert all(p["usable"] or p["missing"] for p in providers.values())
    shown = vitrify("doctor")
    assert shown.code == 0
    for line in (r"^ cpu +\S.* onnx \(cpu\)", r"^ nv-tensorrt-rtx +cuda ", r"^without --device onnx uses \w+: the "):
        assert re.search(line, shown.out, re.M), line


def test_a_provider_that_no_one_installed_says_how_to_get_it(vitrify: Callable[..., Any]) -> None:
    providers = {p["name"]: p for p in vitrify("doctor", "--json").json["runtimes"]["onnx"]["details"]["providers"]}
    if providers["cuda"]["found"]:
        pytest.skip("needs a wheel of ONNX Runtime without CUDA")
    assert providers["cuda"]["missing"] == "not installed"
    assert "pip install onnxruntime-gpu" in providers["cuda"]["fix"]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"usable": False}, r"abacus +not usable +It does not say why\.\s"),
        ({"usable": False, "what": "No beads.", "fix": "Buy some."}, r"abacus +not usable +No beads\. Buy some\.\s"),
        ({"usable": False, "what": "No beads.", "buys": "sums"}, r"abacus +not usable +No beads\. \(sums\)\s"),
        ({"usable": True, "version": "1", "devices": ["cpu"]}, r"abacus 1 +cpu\s"),
    ],
)
def test_doctor_prints_what_a_row_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], row: dict[str, Any], line: str
) -> None:
    found = {"machine": {}, "runtimes": {"abacus": row}, "problems": [], "recipes": {}}
    found["export"] = {"usable": False, "versions": {}, "fix": "Install it."}
    monkeypatch.setattr(doctor_room, "examine", lambda: found)
    with pytest.raises(typer.Exit) if not row["usable"] else nullcontext():
        doctor()
    assert re.search(line, capsys.readouterr().out)


def test_inspect_says_which_files_have_no_hash(
    here: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    whole = here("inspect", emotions_artifact, "--checksums", "--json").json
    assert (whole["checksums"], whole["unhashed"]) == ("verified", [])
    copy = shutil.copytree(emotions_artifact, tmp_path / "copy")
    manifest = json.loads((copy / "artifact.json").read_text())
    del manifest["files"]  # as manifests were before
    (copy / "artifact.json").write_text(json.dumps(manifest))
    seen = here("inspect", copy, "--checksums")
    assert re.search(
        r"^checksums: 1 files are those that were built; \d+ have no recorded hash: .*model.onnx", seen.out, re.M
    )
    (copy / "artifact.json").unlink()
    foreign = here("inspect", copy, "--checksums")
    assert foreign.out.splitlines()[-1] == "checksums: not recorded in this folder"
    assert here("inspect", copy, "--checksums", "--json").json["checksums"] == "not recorded"


def test_a_graph_that_was_changed_is_found(here: Callable[..., Any], emotions_artifact: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(emotions_artifact, tmp_path / "copy")
    graph = bytearray((copy / "model.onnx").read_bytes())
    graph[-1] ^= 1
    (copy / "model.onnx").unlink()
    (copy / "model.onnx").write_bytes(graph)
    done = here("inspect", copy, "--checksums", "--json")
    assert (done.code, done.error["code"]) == (6, "bad_artifact")


def test_options_reach_the_runtime_and_change_no_answer(
    vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40), (255, 220, 0)).save(tmp_path / "one.png")
    common = ["classify", emotions_artifact, tmp_path / "one.png", "--json"]
    plain = vitrify(*common)
    given = vitrify(
        *common, "--prepack", "--no-arena", "--runtime-cache", "--threads", 1, "--hint", "latency", "--offline",
        VITRIFY_CACHE=str(tmp_path / "cache"),
    )  # fmt: skip
    assert given.code == 0, given.err
    assert given.json["results"][0]["labels"][0]["label"] == plain.json["results"][0]["labels"][0]["label"]
    kinds = {e["kind"] for e in vitrify("cache", "ls", "--json", VITRIFY_CACHE=str(tmp_path / "cache")).json["entries"]}
    assert kinds == {"onnxruntime"}, "--runtime-cache keeps the optimized graph"


def test_export_inspect_and_generate(
    here: Callable[..., Any], diffusion_artifact: Path, diffusion_source: Path, tmp_path: Path
) -> None:
    done = here("export", diffusion_source, "-o", tmp_path / "emoji", "--no-verify")
    assert done.code == 0, done.err
    assert "from the cache" in done.out
    assert "is ready: vitrify generate" in done.out
    seen = here("inspect", tmp_path / "emoji", "--checksums")
    assert seen.code == 0, seen.err
    assert "not run" in seen.out
    assert re.search(r"^checksums: \d+ files are those that were built$", seen.out, re.M), seen.out
    drawn = here(
        "generate", tmp_path / "emoji", "a red apple", "-o", tmp_path / "apple.png",
        "--steps", 4, "--seed", 7, "--batch", 2, "--scheduler", "dpmpp_2m", "--device", "cpu", "--json",
    )  # fmt: skip
    assert drawn.code == 0, drawn.err
    assert [Path(i["path"]).name for i in drawn.json["images"]] == ["apple-1.png", "apple-2.png"]
    assert [i["seed"] for i in drawn.json["images"]] == [7, 8]
    pipeline = package.load(diffusion_artifact, "cpu")
    for number, path in enumerate((tmp_path / "apple-1.png", tmp_path / "apple-2.png")):
        expected = pipeline.generate("a red apple", steps=4, seed=7 + number, scheduler="dpmpp_2m").images[0]
        off = np.abs(np.asarray(Image.open(path)).astype(int) - np.asarray(expected).astype(int)).max()
        assert off <= 1  # the batch of two may round another way
        made = read_parameters(path)
        assert (made["model"], made["source"], made["revision"]) == ("emoji", str(diffusion_source), None)
    pipeline.close()


def test_a_picture_is_named_after_prompt_and_seed(
    here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    done = here("generate", diffusion_artifact, "A red, red Apple!", "--steps", 1, "--seed", 5, cwd=tmp_path)
    assert done.code == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["a-red-red-apple-5.png"]
    assert "seed 5" in done.out
    assert done.out.rstrip().endswith("onnx CPUExecutionProvider on cpu, float32")
    assert "device: cpu" in done.err


def test_a_seed_that_was_not_given_is_printed_and_draws_the_same(
    here: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    common = ["generate", diffusion_artifact, "a blue car", "--steps", 2, "--json"]
    first = here(*common, "-o", tmp_path / "one.png")
    seed = first.json["images"][0]["seed"]
    second = here(*common, "-o", tmp_path / "two.png", "--seed", seed)
    assert second.code == 0, second.err
    np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / f"{n}.png")) for n in ("one", "two")))


def test_a_source_is_exported_into_the_cache_once(
    vitrify: Callable[..., Any], environment: dict[str, str], emotions_artifact: Path, emotions_source: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    Image.new("RGB", (40, 40), (255, 220, 0)).save(tmp_path / "one.png")
    source = shutil.copytree(emotions_source, tmp_path / "model")
    first, second = (vitrify("classify", source, tmp_path / "one.png", "--json") for _ in range(2))
    assert first.code == second.code == 0, first.err
    assert "exported into the cache" in first.err
    assert "exported into the cache" not in second.err
    assert first.json["results"] == second.json["results"]
    listed = vitrify("cache", "ls", "--json")
    assert {"graphs", "artifacts"} <= {e["kind"] for e in listed.json["entries"]}


def test_the_cache_can_be_emptied(vitrify: Callable[..., Any], cache: Path, tmp_path: Path) -> None:
    own = shutil.copytree(cache, tmp_path / "cache", ignore=shutil.ignore_patterns(".*.part-*", ".*.lock"))
    before = vitrify("cache", "ls", "--json", VITRIFY_CACHE=str(own)).json
    done = vitrify("cache", "prune", "--json", VITRIFY_CACHE=str(own))
    assert done.code == 0, done.err
    assert len(done.json["removed"]) == len(before["entries"])
    assert vitrify("cache", "ls", "--json", VITRIFY_CACHE=str(own)).json["entries"] == []


def test_a_cache_bound_that_is_no_number_is_refused(vitrify: Callable[..., Any]) -> None:
    done = vitrify("cache", "ls", "--json", VITRIFY_CACHE_MAX="lots")
    assert (done.code, done.error["code"]) == (2, "usage")
    assert "VITRIFY_CACHE_MAX" in done.error["what"]


def test_stdout_holds_one_document_and_stderr_the_rest(
    vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    done = vitrify("classify", emotions_artifact, tmp_path / "one.png", "--json")
    assert set(json.loads(done.out)) == {"results", "timings", "placement"}
    assert "device: cpu" in done.err


def test_an_error_without_json_leaves_stdout_empty(vitrify: Callable[..., Any], tmp_path: Path) -> None:
    done = vitrify("inspect", tmp_path / "nothing")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert "\n  fix: " in done.err


def test_the_version_is_printed(vitrify: Callable[..., Any]) -> None:
    assert vitrify("--version").out.strip() == f"vitrify {package.__version__}"


def test_classify_prints_a_line_a_picture(here: Callable[..., Any], emotions_artifact: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    done = here("classify", emotions_artifact, tmp_path, "--threshold", 0.999999)
    assert done.code == 0, done.err
    assert [line.split()[0].endswith(n) for line, n in zip(done.out.splitlines(), ("a.png", "b.png"), strict=True)]
    assert done.out.count("no label reaches the threshold") == 2
    assert "ran on onnx CPUExecutionProvider on cpu, float32" in done.err


@pytest.mark.parametrize("command", ["export", "compile", "generate", "classify", "verify", "inspect"])
def test_a_command_without_its_arguments_says_which(here: Callable[..., Any], command: str) -> None:
    done = here(command, "--json")
    assert (done.code, done.error["code"]) == (2, "usage"), done.err
    assert "issing" in done.error["what"]
    assert f"{command} --help" in done.error["fix"]


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"family": "sd", "tasks": ["text2img", "img2img"]}, 'generate ARTIFACT "a prompt" -o'),
        ({"family": "sd", "tasks": ["inpaint"]}, "--mask mask.png"),
        ({"family": "controlnet", "control": {}}, "--controlnet ARTIFACT --control picture.png"),
        ({"family": "vit", "tasks": ["classify"]}, "classify ARTIFACT"),
    ],
)
def test_what_is_ready_is_told_with_a_command_that_runs_it(settings: dict[str, Any], command: str) -> None:
    from vitrify.cli_run import use

    artifact: Any = SimpleNamespace(pipeline=settings)
    assert command in use(artifact)
