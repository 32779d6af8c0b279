"""The search for the best artifact: its goal, its pruning, what it keeps in float, and whole searches."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.matrix import Axes
from vitrify.bench.records import Sample
from vitrify.bench.results import Cell, Quality, read_results
from vitrify.bench.spec import Spec
from vitrify.bench.tune.candidates import candidates, variants
from vitrify.bench.tune.goal import Goal
from vitrify.bench.tune.outcome import use
from vitrify.bench.tune.search import _with_kept, rank
from vitrify.bench.tune.sensitivity import measure_parts, part_of, parts_to_keep
from vitrify.core.artifact import Artifact
from vitrify.core.errors import UsageError
from vitrify.quant.recipes import recipe

Run = Callable[..., Any]
SPEC = Spec("m", "m", "text2img", "onnx", "fp32", width=64, height=64, steps=4, guidance=7.5)


def test_a_bar_has_a_default_for_each_task() -> None:
    assert Goal().of_task("text2img").min_psnr == 30
    assert Goal().of_task("classify").min_agreement == 0.99
    with pytest.raises(UsageError, match="draws nothing"):
        Goal(min_psnr=30).of_task("classify")
    with pytest.raises(UsageError, match="no labels"):
        Goal(min_agreement=0.9).of_task("text2img")
    with pytest.raises(UsageError, match="no objective 'speed'"):
        Goal("speed").of_task("classify")


def test_how_far_below_the_bar() -> None:
    goal = Goal(min_psnr=30)
    assert goal.shortfall(Quality(psnr_db=(20.0, 30.0))) == 5
    assert goal.reaches(Quality(psnr_db=(30.0, 31.0)))
    assert goal.reaches(Quality(psnr_db=(None, None)))
    assert Goal(min_psnr=200).reaches(Quality(psnr_db=(None,)))  # nothing is nearer than the same picture
    assert not goal.reaches(None)
    assert Goal(min_agreement=0.99).shortfall(Quality(agreement=0.97)) == pytest.approx(2)


def test_a_broken_limit_is_no_value() -> None:
    cell = Cell(SPEC, (), {"disk_mb": 50.0})
    assert Goal("disk").value(cell) == 50
    assert math.isinf(Goal("disk", limits={"disk_mb": 40.0}).value(cell))
    assert "50 MB of disk, at most 40 is asked for" in Goal(limits={"disk_mb": 40.0}).broken(cell)[0]


def test_recipes_known_to_be_slower_are_not_tried_for_latency(diffusion_artifact: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    axes = Axes(("onnx", "openvino"))
    fast = candidates("m", "m", artifact, axes, Goal())
    assert [s.how for s in fast.specs if s.runtime == "onnx"] == [
        *("onnx fp32", "onnx int8-dynamic", "onnx int8-static", "onnx int8-hybrid"),
    ]
    assert any("1.51 of float32's time" in s.what for s in fast.skipped)
    small = candidates("m", "m", artifact, axes, Goal("memory"))
    assert "onnx int4-weights" in [s.how for s in small.specs]
    everything = candidates("m", "m", artifact, axes, Goal(), everything=True)
    assert "onnx int4-weights" in [s.how for s in everything.specs]
    named = candidates("m", "m", artifact, Axes(("onnx",), ("int4-weights",)), Goal())
    assert [s.how for s in named.specs] == ["onnx int4-weights"]


def test_variants_compute_the_same_numbers() -> None:
    memory = list(variants(SPEC, Goal("memory")))
    alone, arena = ({"winograd": False}, {"prepack": False}), {"arena": False}
    assert [s.options for s in memory] == [*alone, arena, *({**one, **arena} for one in alone)]
    assert {s.threads for s in variants(SPEC, Goal())} >= {1}
    assert not list(variants(SPEC, Goal("disk")))


def test_one_disturbance_costs_a_candidate_nothing() -> None:
    def ranked(*rounds: tuple[int, float, int], **limits: float) -> float:
        samples = [
            Sample(SPEC.name, "", number, 0, 0, 0.0, 1.0, 0.5, 0.1, mb * 1_000_000, values={"latency_ms": ms})
            for number, ms, mb in rounds
        ]
        return rank(Cell(SPEC, samples), Goal(limits=limits))

    assert ranked((1, 9.0, 100), (2, 6.6, 100)) == 6.6
    assert ranked((1, 6.0, 120), (2, 7.0, 100), peak_mb=110) == 7.0
    assert ranked((1, 6.0, 100), (2, 6.6, 100), (3, 7.2, 100), (4, 7.1, 100)) == 7.1  # beside its variants
    assert ranked((1, 6.0, 100), (5, 7.0, 100), (6, 7.3, 100), (7, 7.1, 100)) == 7.1
    assert math.isinf(ranked())


@pytest.mark.parametrize(
    ("layer", "part"),
    [
        ("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q.weight", "up_blocks.1."),
        ("mid_block.resnets.0.conv1.weight", "mid_block."),
        ("vit.encoder.layer.11.attention.output.dense.weight", "encoder.layer.11."),
        ("text_model.encoder.layers.0.self_attn.out_proj.weight", "encoder.layers.0."),
        ("transformer_blocks.7.attn.to_q.weight", "transformer_blocks.7."),
        ("encoder.block.3.layer.0.SelfAttention.q.weight", "encoder.block.3."),
        ("single_transformer_blocks.2.proj_mlp.weight", "single_transformer_blocks.2."),
        ("proj_in.weight", "proj_in"),
    ],
)
def test_parts_are_patterns_for_keep(layer: str, part: str) -> None:
    assert part_of(layer) == part
    assert recipe(f"int8-weights:keep={part}").kept(layer.removesuffix(".weight"))
    assert not recipe("int8-weights").kept(layer.removesuffix(".weight"))


def test_the_fewest_noisy_parts_are_kept() -> None:
    noise = {"a": 0.5, "b": 0.3, "c": 0.15, "d": 0.05}
    assert parts_to_keep(noise, 0) == []
    assert parts_to_keep(noise, 3) == ["a"]  # half of the noise is 3.01 dB
    assert parts_to_keep(noise, 3.02) == ["a", "b"]
    assert parts_to_keep(noise, 100) == ["a", "b", "c", "d"]
    assert parts_to_keep({}, 3) == []


def test_kept_parts_join_those_of_the_recipe() -> None:
    assert recipe(_with_kept("int8-static", ["mid_block.", "up_blocks.1."])).keep == ("mid_block.", "up_blocks.1.")
    joined = recipe(_with_kept("int4-weights:group=32,keep=conv_shortcut", ["mid_block."]))
    assert (joined.group, joined.keep) == (32, ("conv_shortcut", "mid_block."))


def test_keeping_the_noisiest_parts_lowers_the_noise(emotions_artifact: Path) -> None:
    """What parts are said to lose must be what is gained by keeping them."""
    artifact = Artifact.load(emotions_artifact)
    noise = measure_parts(artifact, recipe("int4-weights"))
    assert len(noise) >= 4
    assert all(0 < value < 0.1 for value in noise.values())
    kept = parts_to_keep(noise, 6)
    assert 0 < len(kept) < len(noise)
    raised = measure_parts(artifact, recipe(_with_kept("int4-weights", kept)))
    assert set(raised) == set(noise) - set(kept)
    assert sum(raised.values()) <= 0.26 * sum(noise.values())


def test_the_winner_is_run_as_it_was_measured() -> None:
    cell = Cell(
        Spec("m", "m", "classify", "openvino", "fp32", threads=2, options={"hint": "throughput", "static": True}), ()
    )
    said = use(Path("best"), cell)
    assert said == "vitrify classify best IMAGE --runtime openvino --device cpu --threads 2 --hint throughput --static"
    said = use(Path("best"), Cell(replace(SPEC, runtime="openvino", options={"winograd": False}), ()))
    assert said.endswith("--runtime openvino --device cpu -O winograd=no")
    said = use(Path("my models/best"), Cell(SPEC, ()))
    assert said == (
        "vitrify generate 'my models/best' PROMPT --width 64 --height 64 --steps 4 --guidance 7.5 --batch 1"
        " --runtime onnx --device cpu"
    )
    said = use(Path("best"), Cell(replace(SPEC, task="inpaint"), ()))
    assert "--height 64 --image IMAGE --mask MASK --steps 4" in said


@pytest.fixture(scope="module")
def tuned(vitrify: Run, emotions_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("tune") / "out"
    done = vitrify(
        *("tune", emotions_artifact, "-o", out, "--runtime", "onnx", "--objective", "disk", "--min-agreement", "0.95"),
        *("--quant", "fp32,int8-weights,int4-weights", "--json"),
    )
    assert done.code == 0, done.err
    return out, done.json


def test_a_search_publishes_what_reaches_the_bar(tuned: tuple[Path, Any]) -> None:
    out, found = tuned
    best = Artifact.load(out / "best")
    best.verify(checksums=True)
    assert best.proof["labels"]["agreement"] >= 0.95
    sizes = {c["spec"]["recipe"]: c["disk_mb"] for c in found["candidates"]}
    assert set(sizes) == {"fp32", "int8-weights", "int4-weights"}
    winner = found["winner"]
    assert winner["disk_mb"] == min(sizes.values())
    assert winner["rounds"] == 3
    assert winner["latency_ms"] > 0
    assert json.loads((out / "tune.json").read_text())["winner"] == winner
    assert (out / "report.html").is_file()


def test_the_published_artifact_runs(tuned: tuple[Path, Any], vitrify: Run, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 180, 40)).save(tmp_path / "face.png")
    words = shlex.split(tuned[1]["use"])
    done = vitrify(*(str(tmp_path / "face.png") if word == "IMAGE" else word for word in words[1:]))
    assert done.code == 0, done.err


def test_the_same_search_again_measures_nothing(tuned: tuple[Path, Any], vitrify: Run, emotions_artifact: Path) -> None:
    out, found = tuned
    before = (out / "results.jsonl").read_text().count('"kind": "sample"')
    done = vitrify(
        *("tune", emotions_artifact, "-o", out, "--runtime", "onnx", "--objective", "disk", "--min-agreement", "0.95"),
        *("--quant", "fp32,int8-weights,int4-weights", "--json"),
    )
    assert done.code == 0, done.err
    assert (out / "results.jsonl").read_text().count('"kind": "sample"') == before
    assert done.json["winner"]["cell"] == found["winner"]["cell"]


def test_a_bar_that_nothing_reaches_publishes_nothing(
    tuned: tuple[Path, Any], vitrify: Run, emotions_artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(tuned[0] / "artifacts", out / "artifacts")
    done = vitrify(
        *("tune", emotions_artifact, "-o", out, "--runtime", "onnx", "--objective", "disk", "--max-disk-mb", "0.5"),
        *("--quant", "fp32,int4-weights", "--json"),
    )
    assert done.code == 3, done.err
    assert "No candidate of" in done.error["what"]
    assert "at most 0.5 MB of disk" in done.error["what"]
    assert "The nearest is onnx int4-weights" in done.error["what"]
    assert not (out / "best").exists()
    told = json.loads((out / "tune.json").read_text())
    assert told["winner"] is None
    assert len(told["candidates"]) == 2


@pytest.mark.slow
def test_ctrl_c_publishes_the_best_so_far(
    emotions_artifact: Path, interrupted: Callable[..., str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    err = interrupted(out, "tune", emotions_artifact, "--runtime", "onnx", "--quant", "fp32,int8-weights")
    assert "The best so far is" in err
    Artifact.load(out / "best").verify(checksums=True)
    assert json.loads((out / "tune.json").read_text())["interrupted"] is True
    assert read_results(out).cells


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--min-psnr", "30"], "draws nothing"),
        (["--quant", "int3"], "no recipe 'int3'"),
        (["--runtime", "onyx"], "no runtime 'onyx'"),
        (["--objective", "speed"], "speed"),
    ],
)
def test_bad_input(vitrify: Run, emotions_artifact: Path, tmp_path: Path, arguments: list[str], what: str) -> None:
    done = vitrify("tune", emotions_artifact, "-o", tmp_path / "out", *arguments, "--json")
    assert done.code == 2
    assert what in done.error["what"]
    assert "Traceback" not in done.err
