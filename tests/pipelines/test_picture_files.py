"""Many picture files: a batch in memory at a time, and one that cannot be read stops no other."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.errors import BadInput
from vitrify.pipelines.classification import ClassificationPipeline, ClassifyResult
from vitrify.pipelines.picture_files import NAMED, classify_files, failure


@pytest.fixture(scope="module")
def ours(emotions_artifact: Path) -> Iterator[ClassificationPipeline]:
    pipeline: Any = vitrify.load(emotions_artifact, "cpu")
    yield pipeline
    pipeline.close()


def noise(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(3)
    for number in range(count):
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.glob("*.png"))


def test_one_batch_of_pictures_lives_at_a_time(ours: ClassificationPipeline, tmp_path: Path) -> None:
    paths = noise(tmp_path, 7)
    born: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def run(pictures: Sequence[Image.Image]) -> ClassifyResult:
        gc.collect()
        born.extend(weakref.ref(p) for p in pictures)
        alive.append(sum(ref() is not None for ref in born))
        return ours.run(pictures, batch=3)

    told: list[tuple[int, int]] = []
    found, seconds = classify_files(paths, run, batch=3, on_batch=lambda done, total: told.append((done, total)))
    assert alive == [3, 3, 1]
    assert told == [(3, 7), (6, 7), (7, 7)]
    assert [one.path for one in found] == paths
    together = ours.classify([Image.open(p) for p in paths], batch=3)
    assert [one.answer for one in found] == together
    assert set(seconds) == {"preprocess", "model"}
    assert min(seconds.values()) > 0


def test_one_that_cannot_be_read_or_prepared_stops_no_other(ours: ClassificationPipeline, tmp_path: Path) -> None:
    paths = noise(tmp_path, 4)
    paths[1].write_bytes(paths[1].read_bytes()[:200])

    def run(pictures: Sequence[Image.Image]) -> ClassifyResult:
        if any(p.width == 400 for p in pictures):
            raise BadInput("A picture of 400 pixels.", "Cut it.")  # as preprocessing does for the longest ones
        return ours.run(pictures)

    Image.new("RGB", (400, 20)).save(paths[2])
    found, _ = classify_files(paths, run, batch=4)
    assert [one.error is None for one in found] == [True, False, False, True]
    assert [bool(one.answer) for one in found] == [True, False, False, True]
    assert "cannot be decoded" in str(found[1].error)
    assert "400 pixels" in str(found[2].error)
    error = failure(found)
    assert error is not None
    assert error.what == f"2 of 4 pictures could not be labelled: {paths[1]}, {paths[2]}."


def test_an_error_names_some_of_many(tmp_path: Path) -> None:
    paths = [tmp_path / f"{n:02}.png" for n in range(NAMED + 3)]
    for path in paths:
        path.touch()
    found, seconds = classify_files(paths, lambda pictures: pytest.fail("nothing could be read"))
    error = failure(found)
    assert error is not None
    assert error.what.startswith(f"{NAMED + 3} of {NAMED + 3} pictures")
    assert error.what.endswith(f"{paths[NAMED - 1]} and 3 more.")
    assert seconds == {}


def test_a_lone_pictures_error_is_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    found, _ = classify_files([tmp_path / "a.png"], lambda pictures: pytest.fail("nothing could be read"))
    assert str(failure(found)).startswith(f"{tmp_path / 'a.png'} is empty (0 bytes).")


def damaged_folder(folder: Path) -> list[Path]:
    paths = noise(folder, 3)
    paths[1].write_bytes(b"not a picture")
    return paths


def test_the_command_line_labels_the_others(
    vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    paths = damaged_folder(tmp_path)
    done = vitrify("classify", emotions_artifact, tmp_path, "--top-k", 1)
    assert done.code == 2
    assert [line.split()[0] for line in done.out.splitlines()] == [str(paths[0]), str(paths[2])]
    assert f"{paths[1]}  {paths[1]} is not a picture that can be read." in done.err
    assert f"error: 1 of 3 pictures could not be labelled: {paths[1]}.\n  fix: " in done.err
    assert "Traceback" not in done.err


def test_with_json_there_is_one_document_with_answers_and_errors(
    vitrify: Callable[..., Any], emotions_artifact: Path, tmp_path: Path
) -> None:
    paths = damaged_folder(tmp_path)
    done = vitrify("classify", emotions_artifact, *paths, "--json")
    assert done.code == 2
    assert set(done.json) == {"results", "timings", "placement", "error"}
    assert [Path(r["image"]) for r in done.json["results"]] == paths
    assert [sorted(r) for r in done.json["results"]] == [["image", "labels"], ["error", "image"], ["image", "labels"]]
    assert sorted(done.json["results"][1]["error"]) == ["code", "fix", "what"]
    assert done.error["code"] == "bad_input"
    assert str(paths[1]) in done.error["what"]
