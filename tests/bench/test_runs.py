"""`vitrify bench` from end to end: a matrix on small models, and cells that crash, hang or cannot be made."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.results import read_results
from vitrify.core.errors import BadInput

Run = Callable[..., Any]
QUICK = ("--rounds", "1", "--seconds", "0.1", "--calls", "2")
# a runtime of another package: ONNX Runtime, whose sessions end badly
_BAD = """
import os, time
from vitrify.core.errors import RuntimeFailure
from vitrify.runtimes.ort import RUNTIME as ORT

class Session:
    def __init__(self, session, how):
        self._session, self._how = session, how
        self.inputs, self.outputs, self.placement = session.inputs, session.outputs, session.placement
    def run(self, tensors):
        if self._how == "crash":
            os.abort()
        if self._how == "hang":
            time.sleep(3600)
        raise RuntimeFailure("The device fell off the bus.", "Put it back.")
    def close(self):
        self._session.close()

class Runtime:
    formats = ("onnx",)
    def __init__(self, name):
        self.name = name
    def probe(self):
        return ORT.probe()
    def open(self, component, device, options, overrides=None):
        return Session(ORT.open(component, device, options, overrides), self.name)

CRASH, HANG, FAIL = Runtime("crash"), Runtime("hang"), Runtime("fail")
"""


@pytest.fixture(scope="module")
def matrix(vitrify: Run, emotions_artifact: Path, diffusion_artifact: Path, tmp_path_factory: Any) -> Path:
    """A results folder of both models."""
    home: Path = tmp_path_factory.mktemp("bench")
    (home / "suite.toml").write_text(f"""
rounds = 1
seconds = 0.1
calls = 2

[[model]]
source = "{emotions_artifact}"
runtime = ["onnx", "openvino"]
quant = ["fp32", "int8-weights"]

[[model]]
source = "{diffusion_artifact}"
runtime = "onnx"
steps = 2
""")
    done = vitrify("bench", home / "suite.toml", "-o", home / "out", "--no-verify", "--json")
    assert done.code == 0, done.err
    assert len(done.json["results"][0]["cells"]) == 5
    return home / "out"


def test_each_cell_has_its_figures(matrix: Path) -> None:
    results = read_results(matrix)
    assert len(results.measured) == 5
    assert not results.failed
    for cell in results.measured:
        figures = {name: made.median for name in cell.metrics if (made := cell.figure(name)) is not None}
        needed = {"start_s", "load_s", "compile_s", "first_s", "cold_s", "latency_ms", "items_per_s", "yardstick_ms"}
        assert needed <= set(figures), cell.name
        assert figures["cold_s"] >= figures["start_s"] + figures["load_s"] + figures["compile_s"] + figures["first_s"]
        assert figures["wall_s"] > figures["cold_s"]
        assert figures["peak_mb"] > 50
        assert figures["disk_mb"] > 0.5
        assert 0 < (cell.share_of(results.peak_gflops) or 0) < 4, cell.name  # int8 may beat float32's peak
        assert len(cell.latencies()) == int(figures["calls"])
        parts = ("unet_ms", "step_ms", "decode_ms") if cell.spec.task == "text2img" else ("model_ms", "preprocess_ms")
        assert all(0 < figures[part] < 1.5 * figures["latency_ms"] for part in parts)
        assert cell.percentile(99) is None or len(cell.latencies()) >= 100


def test_a_call_is_its_parts(matrix: Path) -> None:
    cell = next(c for c in read_results(matrix).measured if c.spec.task == "text2img")
    figures = {name: made.median for name in cell.metrics if (made := cell.figure(name)) is not None}
    parts = figures["encode_ms"] + 2 * figures["step_ms"] + figures["decode_ms"]
    assert parts == pytest.approx(figures["latency_ms"], rel=0.5)
    assert figures["unet_ms"] <= 2 * figures["step_ms"] * 1.5


def test_the_report_is_there(matrix: Path) -> None:
    page = (matrix / "report.html").read_text()
    assert "int8-weights" in page
    assert not re.findall(r"(?:src|href)=[\"']?https?:|url\((?!#)", page)  # nothing that it would have to fetch
    assert "int8-weights" in (matrix / "report.md").read_text()


def test_a_second_run_uses_the_artifacts_and_keeps_the_results(
    vitrify: Run, emotions_artifact: Path, matrix: Path
) -> None:
    before = (matrix / "results.jsonl").read_text()
    done = vitrify(
        *("bench", emotions_artifact, "-o", matrix, "--quant", "int8-weights", "--runtime", "onnx"),
        *("--no-verify", *QUICK),
    )
    assert done.code == 0, done.err
    assert "compile emotions" not in done.err
    (older,) = matrix.glob("results-*.jsonl")
    assert older.read_text() == before
    assert len(read_results(matrix).cells) == 1


@pytest.fixture
def bad_runtimes(tmp_path: Path, environment: dict[str, str]) -> dict[str, str]:
    """The environment in which the runtimes crash, hang and fail are installed."""
    home = tmp_path / "site"
    info = home / "bad_runtimes-1.0.dist-info"
    info.mkdir(parents=True)
    (home / "bad_runtimes.py").write_text(_BAD)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-runtimes\nVersion: 1.0\n")
    names = "crash = bad_runtimes:CRASH\nhang = bad_runtimes:HANG\nfail = bad_runtimes:FAIL\n"
    (info / "entry_points.txt").write_text(f"[vitrify.runtimes]\n{names}")
    return {"PYTHONPATH": os.pathsep.join([str(home), environment["PYTHONPATH"]])}


def test_a_cell_that_crashes_or_hangs_is_told_and_the_rest_go_on(
    vitrify: Run, emotions_artifact: Path, bad_runtimes: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = vitrify(
        *("bench", emotions_artifact, "-o", out, "--runtime", "crash,onnx,hang,fail", "--timeout", "8", "--json"),
        *QUICK,
        **bad_runtimes,
    )
    assert done.code == 5, done.err
    results = read_results(out)
    assert [c.spec.runtime for c in results.measured] == ["onnx"]
    said = {c.spec.runtime: c.failure or "" for c in results.failed}
    assert "was killed by SIGABRT" in said["crash"]
    assert "was stopped after 8 s" in said["hang"]
    assert "The device fell off the bus." in said["fail"]
    assert "Put it back." in said["fail"]
    cells = done.json["results"][0]["cells"]
    assert {c["spec"]["runtime"] for c in cells if c["failure"]} == {"crash", "hang", "fail"}
    page = (out / "report.html").read_text()
    assert "SIGABRT" in page


def test_an_artifact_that_cannot_be_made_is_a_failure(vitrify: Run, emotions_artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(emotions_artifact, broken)
    weights = next(broken.glob("*.safetensors"))
    size = weights.stat().st_size
    with weights.open("r+b") as stream:  # the same size, other numbers: only NaN is noticed
        stream.seek(size // 2)
        stream.write(b"\xff" * (size // 2))
    out = tmp_path / "out"
    done = vitrify("bench", broken, "-o", out, "--quant", "fp32,int8-weights", "--runtime", "onnx", *QUICK)
    assert done.code == 5, done.out
    failures = {c.spec.recipe: c.failure or "" for c in read_results(out).failed}
    assert set(failures) == {"fp32", "int8-weights"}
    assert "compile broken for onnx, int8-weights" in failures["int8-weights"]
    assert "NaN" in failures["int8-weights"]


@pytest.mark.parametrize(
    ("arguments", "what", "code"),
    [
        (["./nowhere"], "nowhere does not exist", 2),
        (["{emotions}", "--runtime", "onyx"], "no runtime 'onyx'", 2),
        (["{emotions}", "--quant", "int8-static", "--runtime", "onnx"], "No cell of this matrix can be run", 2),
        (["{emotions}", "--batch", "many"], "--batch is many", 2),
        (["{emotions}", "-o", "{file}"], "is a file", 2),
        (["compare", "{emotions}", "{emotions}"], "holds no results.jsonl", 2),
        (["report", "{file}", "-o", "{tmp}/r"], "holds no header", 2),
    ],
)
def test_bad_input(
    vitrify: Run, emotions_artifact: Path, tmp_path: Path, arguments: list[str], what: str, code: int
) -> None:
    (tmp_path / "file").write_text("{}\n")
    places = {"emotions": emotions_artifact, "file": tmp_path / "file", "tmp": tmp_path}
    given = [a.format(**places) for a in arguments]
    out = [] if "-o" in given or given[0] in ("compare", "report") else ["-o", str(tmp_path / "out")]
    done = vitrify("bench", *given, *out, "--json", cwd=tmp_path)
    assert done.code == code
    assert what in done.error["what"]
    assert done.error["fix"]
    assert "Traceback" not in done.err


def test_results_of_another_schema_are_refused(matrix: Path, tmp_path: Path) -> None:
    lines = (matrix / "results.jsonl").read_text().splitlines()
    other = [json.dumps({**json.loads(line), "schema": 7}) if '"header"' in line else line for line in lines]
    (tmp_path / "results.jsonl").write_text("\n".join(other))
    with pytest.raises(BadInput, match="has schema 7; this version reads 1"):
        read_results(tmp_path)


def test_ctrl_c_keeps_what_was_measured(
    emotions_artifact: Path, interrupted: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    err = interrupted(out, "bench", emotions_artifact, "--runtime", "onnx", "--rounds", 99, "--seconds", 0.1)
    assert "What was measured until now" in err
    assert len(read_results(out).measured[0].samples) >= 2
    assert (out / "report.html").is_file()
