"""The first benches: what counts as disk, whose label is read, and the whole run on small models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitrify.bench import records
from vitrify.bench.first import best_label, classify_cases, disk, export_cases, inodes
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
    ours, theirs = classify_cases(tmp_path)
    assert ours.after is not None
    assert theirs.after is not None
    assert ours.after('[{"label": "sad", "score": 0.5}]') == {}
    assert theirs.after('[{"label": "sad", "score": 0.4}]') == {}
    with pytest.raises(BadInput, match=r"labels differ: \{'vitrify': 'sad', 'transformers': 'happy'\}"):
        theirs.after('[{"label": "happy", "score": 0.6}]')


def test_the_first_export_starts_without_a_cache_and_the_second_needs_one(tmp_path: Path) -> None:
    first, second, dynamo = export_cases(tmp_path)
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
def test_both_benches_on_small_models(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    models = tmp_path / "models"
    for name in ("sd15-0", "sd15-1"):
        shutil.copytree(DEMO / "emoji-diffusion", models / name)
    shutil.copytree(DEMO / "emoji-emotions", models / "vit-b")
    command = [sys.executable, "-m", "vitrify.bench.first", "--work", str(tmp_path), "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    rows = {case["case"]: case for case in document["cases"]}
    assert list(rows) == [case.name for case in (*export_cases(tmp_path), *classify_cases(tmp_path))]
    # graphs and tokenizers, but none of the 20 MB of weights
    assert rows["vitrify, second model"]["figures"]["disk_mb"]["median"] < 12
    assert rows["vitrify, whole pipeline"]["ratios"].keys() >= {"wall_s", "peak_mb", "disk_mb"}
    assert rows["vitrify classify"]["ratios"]["wall_s"]["median"] < 1
    assert len(records.read(tmp_path / "export.jsonl").samples) == 3
