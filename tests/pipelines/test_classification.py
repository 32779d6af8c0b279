"""Pictures to labels: the scores that transformers gives, read off in every way that is offered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.errors import BadArtifact, BadInput, Cancelled, UsageError
from vitrify.pipelines.classification import ClassificationPipeline, scores
from vitrify.pipelines.faces import Cascade, FaceBox

LABELS = {"sad", "disgust", "angry", "neutral", "fear", "surprise", "happy"}


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Photographs, a grey one, one with other sides, and noise; all RGB."""
    data = pytest.importorskip("skimage.data", reason="needs scikit-image (extra faces)")
    noise = np.random.default_rng(1).integers(0, 256, (40, 300, 3), dtype=np.uint8)
    named = [Image.fromarray(getattr(data, n)()).convert("RGB") for n in ("astronaut", "coffee", "camera", "chelsea")]
    return [*named, Image.fromarray(noise), Image.new("RGB", (224, 224), (250, 210, 60))]


@pytest.fixture(scope="module")
def ours(emotions_artifact: Path) -> Iterator[ClassificationPipeline]:
    pipeline: Any = vitrify.load(emotions_artifact, "cpu")
    yield pipeline
    pipeline.close()


@pytest.fixture(scope="module")
def theirs(emotions_source: Path) -> Any:
    torch = pytest.importorskip("torch", reason="needs the extra export")
    transformers = pytest.importorskip("transformers", reason="needs the extra export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of its dependencies
        return transformers.pipeline(
            "image-classification", model=str(emotions_source), device="cpu", dtype=torch.float32
        )


def table(labels: list[dict[str, Any]]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in labels}


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_the_scores_are_those_of_transformers(
    ours: ClassificationPipeline, theirs: Any, pictures: list[Image.Image], function: str
) -> None:
    answers = ours.classify(pictures, top_k=None, function=function)
    expected = theirs(pictures, top_k=7, function_to_apply=function)
    assert len(answers) == len(expected) == len(pictures)
    for got, wanted in zip(answers, expected, strict=True):
        assert table(got) == pytest.approx(table(wanted), abs=1e-4)
        assert [e["score"] for e in got] == sorted((e["score"] for e in got), reverse=True)
    assert len({got[0]["label"] for got in answers}) > 1, "pictures with one answer for all would prove little"


def test_softmax_is_the_models_own_function_and_five_labels_the_default(
    ours: ClassificationPipeline, pictures: list[Image.Image]
) -> None:
    (first,) = ours.classify(pictures[:1])
    (whole,) = ours.classify(pictures[:1], top_k=None, function="softmax")
    assert first == whole[:5]
    assert set(table(whole)) == LABELS
    assert math.fsum(table(whole).values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("top_k", [1, 3, 7, 100])
def test_top_k_bounds_the_labels(ours: ClassificationPipeline, pictures: list[Image.Image], top_k: int) -> None:
    assert [len(a) for a in ours.classify(pictures[:2], top_k=top_k)] == [min(top_k, 7)] * 2


def test_a_threshold_takes_every_label_that_reaches_it_and_no_other(
    ours: ClassificationPipeline, pictures: list[Image.Image]
) -> None:
    (whole,) = ours.classify(pictures[:1], top_k=None)
    third = whole[2]["score"]
    assert ours.classify(pictures[:1], top_k=1, threshold=third) == [whole[:3]]
    assert ours.classify(pictures[:1], threshold=1.01) == [[]]
    assert ours.classify(pictures[:1], threshold=0.0) == [whole]


def test_a_batch_changes_nothing_and_is_told(ours: ClassificationPipeline, pictures: list[Image.Image]) -> None:
    told: list[tuple[int, int]] = []
    one = ours.classify(pictures, batch=1)
    several = ours.classify(pictures, batch=4, on_batch=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]
    for a, b in zip(one, several, strict=True):
        assert table(a) == pytest.approx(table(b), abs=1e-5)


def test_it_stops_between_two_batches(ours: ClassificationPipeline, pictures: list[Image.Image]) -> None:
    told: list[int] = []
    with pytest.raises(Cancelled):
        ours.classify(pictures, batch=1, on_batch=lambda done, _: told.append(done), cancel=lambda: len(told) == 2)
    assert told == [1, 2]


def test_each_call_returns_its_own_timings(ours: ClassificationPipeline, pictures: list[Image.Image]) -> None:
    first = ours.run(pictures[:1], faces=True)
    kept = dict(first.timings)
    second = ours.run(pictures)
    assert set(first.timings) == {"faces", "preprocess", "model"}
    assert set(second.timings) == {"preprocess", "model"}
    assert first.timings == kept, "a later call changed it"
    assert not hasattr(ours, "timings"), "two requests at once would mix"
    assert second.placement == ours.placement
    assert second.answers == ours.classify(pictures)


class Counting:
    """A detector that notes what it was shown, over the bundled cascade."""

    def __init__(self) -> None:
        self._cascade = Cascade()
        self.seen: list[tuple[int, int]] = []

    def detect(self, image: Image.Image) -> list[FaceBox]:
        self.seen.append(image.size)
        return self._cascade.detect(image)


def test_faces_are_looked_for_batch_by_batch_and_it_stops_between_pictures(
    ours: ClassificationPipeline, pictures: list[Image.Image]
) -> None:
    order: list[str] = []
    eye = Counting()
    ours.run(
        [pictures[0]] * 3,
        faces=True,
        detector=eye,
        batch=1,
        on_batch=lambda *done: order.append(f"{len(eye.seen)}{done}"),
    )
    assert order == ["1(1, 3)", "2(2, 3)", "3(3, 3)"], "all faces were cut out before the first run"
    eye = Counting()
    with pytest.raises(Cancelled):
        ours.run([pictures[0]] * 3, faces=True, detector=eye, cancel=lambda: len(eye.seen) == 2)
    assert len(eye.seen) == 2


def test_the_cascade_is_opened_once_a_call(
    ours: ClassificationPipeline, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    start = Cascade.__init__
    monkeypatch.setattr(Cascade, "__init__", lambda self: (opened.append(1), start(self))[1])
    several = ours.classify([pictures[0], pictures[1], pictures[0]], faces=True, batch=1)
    assert opened == [1]
    assert [len(faces) for faces in several] == [1, 0, 1]
    assert several[0] == several[2]


def test_faces_are_found_and_each_is_labelled(ours: ClassificationPipeline, pictures: list[Image.Image]) -> None:
    astronaut, coffee = ours.classify(pictures[:2], faces=True, top_k=3)
    assert coffee == []
    (face,) = astronaut
    box = face["box"]
    assert abs(box["left"] - 174) < 15
    assert abs(box["top"] - 66) < 15
    assert abs(box["width"] - 96) < 20
    assert [len(face["labels"]), set(table(face["labels"])) <= LABELS] == [3, True]
    (whole,) = ours.classify(pictures[:1], top_k=3)
    assert face["labels"] != whole, "the face is classified, not the picture"


def test_the_command_line_labels_a_folder(
    vitrify: Callable[..., Any], emotions_artifact: Path, ours: ClassificationPipeline, pictures: list[Image.Image],
    tmp_path: Path,
) -> None:  # fmt: skip
    for number, picture in enumerate(pictures[:3]):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "notes.txt").write_text("not a picture")
    done = vitrify("classify", emotions_artifact, tmp_path, "--top-k", 2, "--device", "cpu", "--json")
    assert done.code == 0, done.err
    results = done.json["results"]
    assert [Path(r["image"]).name for r in results] == ["0.png", "1.png", "2.png"]
    for result, expected in zip(results, ours.classify(pictures[:3], top_k=2), strict=True):
        assert table(result["labels"]) == pytest.approx(table(expected), abs=1e-5)
    assert done.json["placement"]["model"]["provider"] == "CPUExecutionProvider"
    assert set(done.json["timings"]) == {"preprocess", "model"}


def test_the_command_line_labels_faces(
    vitrify: Callable[..., Any], emotions_artifact: Path, pictures: list[Image.Image], tmp_path: Path
) -> None:
    pictures[0].save(tmp_path / "a.png")
    pictures[1].save(tmp_path / "b.png")
    done = vitrify("classify", emotions_artifact, tmp_path / "a.png", tmp_path / "b.png", "--faces", "--json")
    assert done.code == 0, done.err
    assert [len(r["faces"]) for r in done.json["results"]] == [1, 0]
    plain = vitrify("classify", emotions_artifact, tmp_path / "b.png", "--faces")
    assert "no face found" in plain.out
    assert "device: cpu" in plain.err, "the choice of the device is told"


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"function": "argmax"}, UsageError, "argmax"),
        ({"top_k": 0}, UsageError, "top_k is 0"),
        ({"batch": 0}, UsageError, "batch is 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    ours: ClassificationPipeline, options: dict[str, Any], error: type[Exception], what: str
) -> None:
    with pytest.raises(error, match=what):
        ours.classify([Image.new("RGB", (8, 8))], **options)


def test_no_picture_is_refused(ours: ClassificationPipeline) -> None:
    with pytest.raises(BadInput, match="no picture"):
        ours.classify([])


def test_labels_that_do_not_fit_the_model_are_refused(ours: ClassificationPipeline, emotions_artifact: Path) -> None:
    with pytest.raises(BadArtifact, match="7 outputs and 2 labels"):
        ClassificationPipeline(ours.sessions, {**ours.settings, "labels": ["a", "b"]}, emotions_artifact)


def test_scores_do_not_overflow() -> None:
    logits = np.array([[1e4, 0.0, -1e4]], np.float32)
    np.testing.assert_array_equal(scores(logits, "softmax"), [[1, 0, 0]])
    np.testing.assert_array_equal(scores(logits, "sigmoid"), [[1, 0.5, 0]])
    np.testing.assert_array_equal(scores(logits, "none"), logits)
