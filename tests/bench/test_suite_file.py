"""A suite: what a file and options say, and what is refused with the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitrify.bench.suite_file import size_of, suite_of
from vitrify.core.errors import BadInput, UsageError, VitrifyError

WHOLE = """
rounds = 4
seconds = 0.5
batch = [1, 8]
runtime = ["onnx", "openvino"]

[[model]]
source = "emoji"
quant = ["fp32", "int4-weights:group=32"]
size = ["64x64", "128x64"]
options = [{}, {prepack = false}]
steps = 4
guidance = 3

[[model]]
source = "emotions"
name = "faces"
calibration = "pictures"
batch = 2
threads = [1, 2]
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "pictures").mkdir()
    return tmp_path / "suite.toml"


def test_a_file_says_axes_for_all_models_and_for_each(suite_file: Path) -> None:
    suite_file.write_text(WHOLE)
    suite = suite_of([str(suite_file)], {})
    emoji, faces = suite.models
    assert (suite.rounds, suite.seconds, suite.timeout) == (4, 0.5, 900.0)
    assert (emoji.name, emoji.source) == ("emoji", str(suite_file.parent / "emoji"))
    assert emoji.axes.runtimes == ("onnx", "openvino")
    assert emoji.axes.recipes == ("fp32", "int4-weights:group=32")
    assert emoji.axes.sizes == ((64, 64), (128, 64))
    assert emoji.axes.batches == (1, 8)
    assert emoji.axes.options == ({}, {"prepack": False})
    assert (emoji.axes.steps, emoji.axes.guidance) == (4, 3.0)
    assert (faces.name, faces.source) == ("faces", "emotions")
    assert faces.axes.batches == (2,)
    assert faces.axes.threads == (1, 2)
    assert faces.axes.calibration == suite_file.parent / "pictures"


def test_options_win_over_the_file(suite_file: Path) -> None:
    suite_file.write_text(WHOLE)
    suite = suite_of([str(suite_file)], {"batch": [3], "rounds": 9, "quant": None})
    assert [m.axes.batches for m in suite.models] == [(3,), (3,)]
    assert suite.rounds == 9


def test_models_without_a_file(tmp_path: Path) -> None:
    suite = suite_of(["owner/model", str(tmp_path)], {"size": ["512"], "seconds": 1})
    assert [m.name for m in suite.models] == ["model", tmp_path.name]
    assert suite.models[0].axes.sizes == ((512, 512),)


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("round = 3\n[[model]]\nsource='x'", "there is no 'round'", "Did you mean rounds?"),
        ("[[model]]\nsource='x'\nbatches=[1]", "model 1: there is no 'batches'", "Did you mean batch?"),
        ("[[model]]\nsource='x'\nzzz=1", "there is no 'zzz'", "There are source, name, runtime"),
        ("[[models]]\nsource='x'", "there is no 'models'", ""),
        ("[model]\nsource='x'", "model is no list of tables", "[[model]]"),
        ("[[model]]\nname='x'", "model 1 has no source", "source ="),
        ("[[model]]\nsource=3", "model 1 has no source", "source ="),
        ("[[model]]\nsource='x'\nbatch=[1.5]", "batch is 1.5", "whole number"),
        ("[[model]]\nsource='x'\nbatch=[true]", "batch is True", "whole number"),
        ("[[model]]\nsource='x'\nbatch=[]", "batch is empty", "at least one"),
        ("[[model]]\nsource='x'\nbatch=0", "below 1", "larger"),
        ("[[model]]\nsource='x'\nsize=['64by64']", "size '64by64' cannot be read", "512x512"),
        ("[[model]]\nsource='x'\nsize=[0]", "A size is below 1", "512x512"),
        ("[[model]]\nsource='x'\nruntime='onyx'", "no runtime 'onyx'", "onnx"),
        ("[[model]]\nsource='x'\nquant='int3'", "no recipe 'int3'", "int4-weights"),
        ("[[model]]\nsource='x'\noptions=[{prepak=false}]", "there is no 'prepak'", "Did you mean prepack?"),
        ("[[model]]\nsource='x'\noptions=[{prepack='no'}]", "the option prepack is 'no'", "True"),
        ("[[model]]\nsource='x'\noptions=[3]", "options are 3", "options = ["),
        ("[[model]]\nsource='x'\ncalibration='nowhere'", "does not exist", "prompts or a folder"),
        ("rounds='many'\n[[model]]\nsource='x'", "rounds is 'many'", "number"),
        ("rounds=0\n[[model]]\nsource='x'", "must be numbers above 0", "others"),
        ("[[model]]\nsource='x'\n[[model]]\nsource='x'", "Two models are called x", "name ="),
        ("rounds = 3", "There is no model", "[[model]]"),
        ("rounds = = 3", "is no TOML", "docs/bench.md"),
    ],
)
def test_what_makes_no_sense_is_named(suite_file: Path, text: str, what: str, fix: str) -> None:
    suite_file.write_text(text)
    with pytest.raises(VitrifyError) as caught:
        suite_of([str(suite_file)], {})
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        suite_of([str(tmp_path / "none.toml")], {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is no TOML"):
        suite_of([str(tmp_path / "bytes.toml")], {})
    with pytest.raises(UsageError, match="stands alone"):
        suite_of(["a.toml", "emoji"], {})
    with pytest.raises(UsageError, match="no model"):
        suite_of([], {})


@pytest.mark.parametrize(("given", "size"), [("512x768", (512, 768)), (64, (64, 64)), ("64*32", (64, 32))])
def test_sizes(given: Any, size: tuple[int, int]) -> None:
    assert size_of(given) == size
