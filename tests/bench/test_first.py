"""The benches: what counts as disk, whose label is read, and the whole run on small models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench import bench_classify, bench_export, bench_unet, bench_vit, records
from vitrify.bench.bench_classify import best_label
from vitrify.bench.first import BENCHES
from vitrify.bench.preparing import disk, inodes
from vitrify.core.errors import BadInput

DEMO = Path(__file__).parents[2] / "demo" / "models"


def test_disk_counts_an_inode_once_and_nothing_that_was_there(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    source.mkdir()
    (made / "unet").mkdir(parents=True)
    (source / "weights").write_bytes(b"x" * 5_000_000)
    known = inodes([source])
    os.link(source / "weights", made / "unet" / "weights")
    (made / "graph").write_bytes(b"x" * 1_000_000)
    os.link(made / "graph", made / "unet" / "graph")
    (made / "link").symlink_to(source / "weights")
    assert disk([made, tmp_path / "no cache"], known) == {"disk_mb": 1.0}
    assert disk([made], set()) == {"disk_mb": 6.0}


def test_best_label_finds_the_highest_score_in_either_output() -> None:
    answer = [{"label": "sad", "score": 0.2}, {"label": "happy", "score": 0.7}]
    assert best_label(json.dumps(answer)) == "happy"
    assert best_label(json.dumps({"results": [{"image": "x", "labels": answer}], "timings": {}})) == "happy"
    with pytest.raises(BadInput, match="is not JSON"):
        best_label("happy")
    with pytest.raises(BadInput, match="holds no label"):
        best_label("{}")


def test_a_label_that_differs_fails(tmp_path: Path) -> None:
    ours, theirs = bench_classify.cases(tmp_path)
    assert ours.after is not None
    assert theirs.after is not None
    assert ours.after('[{"label": "sad", "score": 0.5}]') == {}
    assert theirs.after('[{"label": "sad", "score": 0.4}]') == {}
    with pytest.raises(BadInput, match=r"labels differ: \{'vitrify': 'sad', 'transformers': 'happy'\}"):
        theirs.after('[{"label": "happy", "score": 0.6}]')


def test_the_first_export_starts_without_a_cache_and_the_second_needs_one(tmp_path: Path) -> None:
    first, second, dynamo = bench_export.cases(tmp_path)
    cache = Path(first.env["VITRIFY_CACHE"])
    assert second.env["VITRIFY_CACHE"] == str(cache)
    assert first.before is not None
    assert second.before is not None
    assert second.after is not None
    cache.mkdir(parents=True)
    first.before()
    assert not cache.exists()
    with pytest.raises(BadInput, match="graph cache is empty"):
        second.before()
    cache.mkdir()
    (cache / "graph").write_bytes(b"x" * 1_000_000)
    second.before()
    (cache / "more").write_bytes(b"x" * 2_000_000)
    assert second.after("") == {"disk_mb": 2.0}  # the first export's graph is not its own
    assert Path(dynamo.env["TMPDIR"]).is_relative_to(tmp_path)


@pytest.mark.parametrize("bench", BENCHES.values(), ids=list(BENCHES))
def test_comparisons_name_cases_that_there_are(bench: Any, tmp_path: Path) -> None:
    names = [case.name for case in bench.cases(tmp_path)]
    for one in bench.comparisons:
        assert set(one.cases) <= set(names)
        assert one.baseline is None or one.baseline in (one.cases or names)


def test_what_was_not_compiled_fails_its_case(tmp_path: Path) -> None:
    cases = {case.name: case for case in bench_unet.cases(tmp_path)}
    static = cases["int8-static on OpenVINO"]
    assert static.before is not None
    with pytest.raises(BadInput, match="sd15-0-onnx-int8-static was not made"):
        static.before()


@pytest.mark.slow
def test_models_have_the_real_sizes() -> None:
    script = (
        "from vitrify.bench.models import sd15_modules, vit_b_module\n"
        "parts = {**sd15_modules('meta'), 'vit': vit_b_module('meta')}\n"
        "print({n: sum(p.numel() for p in m.parameters()) for n, m in parts.items()})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    sizes = {"text_encoder": 123060480, "unet": 859520964, "vae": 83653863, "vit": 85804039}
    assert done.stdout.splitlines()[-1] == str(sizes)


@pytest.mark.slow
def test_every_bench_on_small_models(tmp_path: Path) -> None:
    for library in ("onnxruntime", "openvino", "nncf"):
        pytest.importorskip(library, reason="needs vitrify[onnx,openvino,quant]")
    models = tmp_path / "models"
    for name in ("sd15-0", "sd15-1"):
        shutil.copytree(DEMO / "emoji-diffusion", models / name)
    shutil.copytree(DEMO / "emoji-emotions", models / "vit-b")
    command = [sys.executable, "-m", "vitrify.bench.first", "--work", str(tmp_path), "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {(case["group"], case["case"]): case for case in document["cases"]}
    wanted = [
        (one.title, case.name)
        for bench in BENCHES.values()
        for one in bench.comparisons
        for case in bench.cases(tmp_path)
        if not one.cases or case.name in one.cases
    ]
    assert sorted(rows) == sorted(wanted)
    # graphs and tokenizers, but none of the 20 MB of weights
    assert rows["export", "vitrify, second model"]["figures"]["disk_mb"]["median"] < 12
    assert rows["export", "vitrify, whole pipeline"]["ratios"].keys() >= {"wall_s", "peak_mb", "disk_mb"}
    assert rows["classify", "vitrify classify"]["ratios"]["wall_s"]["median"] < 1
    assert len(records.read(tmp_path / "export.jsonl").samples) == 3

    int8 = rows["quantize", "int8-weights"]
    assert rows["quantize", "int4-weights, groups of 64"]["figures"]["unet_share"]["median"] > 0.1
    assert int8["figures"]["unet_share"]["median"] < 1
    assert int8["ratios"] == {}

    alone = rows["unet on ONNX Runtime", bench_unet.ONNX_ALONE]
    assert alone["baseline"] is None
    for title, case in rows:
        figures = rows[title, case]["figures"]
        if title.startswith(("unet", "vit")):
            assert figures.keys() >= {"step_ms", "load_s"}
            assert figures["step_ms"]["median"] > 0
            if sys.platform == "linux":
                assert 0 < figures["loaded_anonymous_mb"]["median"] < figures["loaded_mb"]["median"]
                assert figures["ran_mb"]["median"] <= 1.05 * figures["peak_mb"]["median"]
    ours = rows["unet on ONNX Runtime", bench_unet.ONNX]
    assert ours["baseline"] == bench_unet.ONNX_ALONE
    assert rows["unet", bench_unet.ONNX]["baseline"] == bench_unet.EAGER
    assert ours["figures"] == rows["unet", bench_unet.ONNX]["figures"]  # the same runs, compared twice
    assert rows["vit", "int8-dynamic on ONNX Runtime"]["baseline"] == bench_vit.EAGER

    # quantize left its results for unet, and unet made the rest
    assert "compiling sd15-0-onnx-int8-weights" not in done.stderr
    assert "compiling sd15-0-onnx-int8-static" in done.stderr
