"""The demo as a whole, and what it refuses."""

from __future__ import annotations

import importlib.util
import json

import pytest

from vitrify.core.errors import BadInput, MissingDependency
from vitrify.core.progress import silent
from vitrify.demo.run import KIND, MARKER, _refuse_other, run_demo


def test_nothing_but_an_earlier_demo_is_replaced(tmp_path):
    _refuse_other(tmp_path)  # empty
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="not the folder of an earlier demo"):
        run_demo(tmp_path, silent)
    (tmp_path / MARKER).write_text("[1, 2]")
    with pytest.raises(BadInput, match="not the folder"):
        run_demo(tmp_path, silent)
    (tmp_path / MARKER).write_text(json.dumps({"kind": KIND}))
    _refuse_other(tmp_path)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="Choose another folder"):
        run_demo(tmp_path / "file", silent)


def test_what_is_missing_is_named_with_its_fix(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with pytest.raises(MissingDependency, match="onnxscript is not installed") as caught:
        run_demo(tmp_path / "out", silent)
    assert caught.value.fix == 'pip install "vitrify[export,onnx]"'
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_demo(tmp_path):
    summary = run_demo(tmp_path / "out", silent)
    out = tmp_path / "out"
    kept = json.loads((out / "results.json").read_text())
    assert kept["kind"] == KIND
    assert summary["lines"]
    for export in (*kept["exports"], kept["swap"]):
        for proof in export["components"].values():
            assert all(isinstance(proof[k], dict) for k in ("graph", "weights", "numeric"))
    assert not kept["swap"]["torch_imported"]
    assert all("from the cache" in note for note in kept["swap"]["notes"] if ": graph " in note)
    assert sum(f["right"] for f in kept["faces"]) >= 6
    # the sessions may pick other kernels for another batch
    assert all(g.get("differs_from_batch", 0) <= 2 for g in kept["grid"])
    psnr = kept["timing"]["draw"]["min_psnr_db"]
    assert psnr is None or psnr > 50
    assert (out / "index.html").is_file()
    assert (out / "results.md").is_file()
    for row in kept["grid"]:
        assert all((out / p["file"]).is_file() for p in row["pictures"])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
