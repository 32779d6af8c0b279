"""What may be asked of a LoadGen run: endpoints, options that mean nothing, the library's samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitrify.bench.loadgen.library import drawn_pictures, pictures_in, prompt_library
from vitrify.bench.loadgen.plan import FILES, PROMPTS, TENSORS, Endpoint, LoadPlan, check, endpoint_of
from vitrify.bench.spec import CLASSIFY, TEXT2IMG
from vitrify.core.errors import BadInput, UsageError

HOST = "http://127.0.0.1:8000"


@pytest.mark.parametrize(
    ("url", "task", "expected"),
    [
        (HOST, CLASSIFY, Endpoint(HOST, "faces", TENSORS)),
        (f"{HOST}/", TEXT2IMG, Endpoint(HOST, "faces", PROMPTS)),
        (f"{HOST}/v2/models/a%20b/infer", CLASSIFY, Endpoint(HOST, "a b", TENSORS)),
        (f"{HOST}/v2/models/other", CLASSIFY, Endpoint(HOST, "other", TENSORS)),
        (f"{HOST}/models/other", CLASSIFY, Endpoint(HOST, "other", FILES)),
        ("https://example.org/models/other", TEXT2IMG, Endpoint("https://example.org", "other", PROMPTS)),
    ],
)
def test_a_url_names_an_endpoint(url: str, task: str, expected: Endpoint) -> None:
    assert endpoint_of(url, "faces", task) == expected


@pytest.mark.parametrize(
    ("url", "task"),
    [
        ("127.0.0.1:8000", CLASSIFY),
        ("ftp://127.0.0.1", CLASSIFY),
        ("http://", CLASSIFY),
        (f"{HOST}/v1/jobs", CLASSIFY),
        (f"{HOST}/models/a?x=1", CLASSIFY),
        ("http://127.0.0.1:99999", CLASSIFY),
        ("http://[::1", CLASSIFY),
        ("http://ann:secret@127.0.0.1", CLASSIFY),
        (f"{HOST}/v2/models/a/infer", TEXT2IMG),
    ],
)
def test_other_urls_are_refused(url: str, task: str) -> None:
    with pytest.raises(UsageError) as caught:
        endpoint_of(url, "faces", task)
    assert caught.value.fix
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "task", "named"),
    [
        ({"scenario": "multi-stream"}, CLASSIFY, "single-stream, offline, server"),
        ({"mode": "both"}, CLASSIFY, "performance, accuracy"),
        ({"duration": 0.0}, CLASSIFY, "--duration"),
        ({"duration": float("nan")}, CLASSIFY, "--duration"),
        ({"duration": 5.0, "mode": "accuracy"}, CLASSIFY, "--duration"),
        ({"qps": 5.0}, CLASSIFY, "--qps"),
        ({"qps": -1.0, "scenario": "server"}, CLASSIFY, "--qps"),
        ({"latency_ms": 5.0, "scenario": "offline"}, CLASSIFY, "--latency-ms"),
        ({"batch": 4}, CLASSIFY, "--batch"),
        ({"batch": 4, "scenario": "offline", "url": f"{HOST}/models/a"}, CLASSIFY, "one of the files"),
        ({"clients": 4, "scenario": "offline"}, CLASSIFY, "--clients"),
        ({"key": "vk"}, CLASSIFY, "--key"),
        ({"steps": 4}, CLASSIFY, "--steps"),
        ({"prompts": "file"}, CLASSIFY, "--prompts"),
        ({"pictures": "folder"}, TEXT2IMG, "--pictures"),
        ({"runtime": "onnx", "url": HOST}, CLASSIFY, "--runtime"),
        ({"device": "cpu", "url": HOST}, CLASSIFY, "--device"),
        ({"threads": 2, "url": HOST}, CLASSIFY, "--threads"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict, task: str, named: str) -> None:
    with pytest.raises(UsageError) as caught:
        check(LoadPlan("artifact", **given), "faces", task)
    assert named in str(caught.value)


def test_options_that_mean_something_are_taken() -> None:
    check(LoadPlan("artifact", "server", qps=5, latency_ms=9, duration=3, batch=4, runtime="onnx"), "a", CLASSIFY)
    check(LoadPlan("artifact", "offline", url=HOST, clients=4, qps=5, batch=8, key="vk"), "a", CLASSIFY)
    check(LoadPlan("artifact", "single-stream", mode="accuracy", steps=2, prompts="file"), "a", TEXT2IMG)


def test_a_plan_rebuilds_itself_through_json() -> None:
    plan = LoadPlan("artifact", "server", qps=5.5, url=HOST)
    assert LoadPlan.from_json(plan.to_json()) == plan


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def test_subfolders_that_bear_labels_are_the_truth(tmp_path: Path) -> None:
    for name in ("happy/b.png", "happy/a.png", "Sad/c.png"):
        _picture(tmp_path / name)
    found = pictures_in(tmp_path, ["sad", "happy"])
    assert [(one.path.name, one.truth) for one in found] == [("c.png", 0), ("a.png", 1), ("b.png", 1)]


def test_pictures_right_in_a_folder_have_no_truth(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png")
    _picture(tmp_path / "happy" / "b.png")
    assert [(one.path.name, one.truth) for one in pictures_in(tmp_path, ["happy"])] == [("a.png", None)]


def test_a_subfolder_of_no_label_is_refused_and_the_nearest_named(tmp_path: Path) -> None:
    _picture(tmp_path / "hapy" / "b.png")
    with pytest.raises(BadInput) as caught:
        pictures_in(tmp_path, ["sad", "happy"])
    assert "hapy" in caught.value.what
    assert "happy" in caught.value.fix


def test_folders_without_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no pictures"):
        pictures_in(tmp_path, [])
    with pytest.raises(BadInput, match="is no folder"):
        pictures_in(tmp_path / "missing", [])


def test_drawn_pictures_differ(tmp_path: Path) -> None:
    found = drawn_pictures(tmp_path)
    assert len({one.path.read_bytes() for one in found}) == len(found) == 64


def test_prompts_come_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red apple\n\n  a cat \n")
    library = prompt_library(file, 5000)
    library.load([0, 1])
    assert [library.sample(n) for n in (0, 1)] == [("a red apple", 0), ("a cat", 1)]
    file.write_text("\n")
    with pytest.raises(BadInput, match="no prompts"):
        prompt_library(file, 5000)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        prompt_library(file, 5000)
