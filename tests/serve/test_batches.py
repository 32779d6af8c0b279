"""Jobs of several clients in one call: each gets what it would have got alone, and ends by itself."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image


def post(server: Any, bodies: list[dict[str, Any]], path: str = "/v1/jobs") -> list[httpx.Response]:
    """All at once."""

    async def all_of_them() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
            return await asyncio.gather(*(http.post(path, **body) for body in bodies))

    return asyncio.run(all_of_them())


def ended(http: Any, id: str) -> dict[str, Any]:
    with http.stream("GET", f"/v1/jobs/{id}/events") as events:
        for _ in events.iter_lines():
            pass
    return http.get(f"/v1/jobs/{id}").json()


def picture(http: Any, job: dict[str, Any], number: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(http.get(job["pictures"][number]).content)), np.float32)


@pytest.fixture(scope="module")
def drawing(start_server: Callable[..., Any], tmp_path_factory: Any) -> Any:
    """A server that draws up to four pictures in one call."""
    file = tmp_path_factory.mktemp("settings") / "serve.toml"
    file.write_text("draw_batch = 4\n")
    return start_server("--config", file)


def test_pictures_of_one_shape_are_drawn_in_one_call(drawing: Any) -> None:
    shape = {"model": drawing.draws, "steps": 12, "guidance": 3.0}
    asked = [
        shape | {"prompt": "a red apple", "seed": 3},
        shape | {"prompt": "a happy face", "seed": 4, "images": 2, "previews": True},
        shape | {"prompt": "a ghost", "seed": 5},
        shape | {"prompt": "a ghost", "seed": 5, "steps": 6},
    ]
    with drawing.client() as http:
        first = http.post("/v1/jobs", json=shape | {"prompt": "a rocket", "steps": 60}).json()
        jobs = [ended(http, answer.json()["id"]) for answer in post(drawing, [{"json": one} for one in asked])]
        assert {job["status"] for job in jobs} == {"succeeded"}
        together = [job["started"] for job in jobs[:3]]
        assert max(together) - min(together) < 0.001, "one call began them"
        assert jobs[3]["started"] != jobs[0]["started"]
        assert ended(http, first["id"])["status"] == "succeeded"
        for job, one in zip(jobs, asked, strict=True):
            assert job["details"]["seed"] == one["seed"]
            assert [p["seed"] for p in job["details"]["parameters"]] == [
                one["seed"] + number for number in range(one.get("images", 1))
            ]
            alone = ended(http, http.post("/v1/jobs", json=one).json()["id"])
            for number in range(one.get("images", 1)):
                assert np.abs(picture(http, job, number) - picture(http, alone, number)).max() <= 2


def test_one_of_a_call_is_cancelled_and_the_others_are_drawn(drawing: Any) -> None:
    shape = {"model": drawing.draws, "steps": 300, "prompt": "a ghost", "guidance": 1.0}
    with drawing.client() as http:
        http.post("/v1/jobs", json=shape | {"steps": 40})
        one, other = (answer.json()["id"] for answer in post(drawing, [{"json": shape}] * 2))
        while not http.get(f"/v1/jobs/{one}").json().get("step"):
            pass
        http.delete(f"/v1/jobs/{one}")
        stopped = ended(http, one)
        assert stopped["status"] == "cancelled"
        assert stopped["step"] < 300
        assert ended(http, other)["status"] == "succeeded"


def test_labels_that_wait_together_are_given_in_one_call(
    server: Any, png: bytes, picture: Callable[..., bytes]
) -> None:
    asked = [{"content": png}, {"content": picture("JPEG")}, {"content": picture("WEBP")}] * 8
    with server.client() as http:
        alone = [http.post(f"/models/{server.labels}", **one).json() for one in asked[:3]]
        before = _batches(http)
        answers = post(server, asked, f"/models/{server.labels}")
        for number, answer in enumerate(answers):
            assert answer.status_code == 200
            for got, wanted in zip(answer.json(), alone[number % 3], strict=True):
                assert got["label"] == wanted["label"]
                assert got["score"] == pytest.approx(wanted["score"], abs=1e-5)
        assert _batches(http) - before < len(asked) / 2


def test_a_damaged_picture_fails_alone(server: Any, png: bytes) -> None:
    broken = png[: len(png) // 2]  # its head is whole
    answers = post(server, [{"content": png}, {"content": broken}] * 6, f"/models/{server.labels}")
    assert [answer.status_code for answer in answers] == [200, 422] * 6


def _batches(http: Any) -> float:
    """How many calls labelled something."""
    lines = http.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("vitrify_batch_pictures_count"))


def test_a_note_that_repeats_another_s_prompt_is_not_told() -> None:
    from vitrify.pipelines.families.t5 import t5_notes
    from vitrify.serve.drawing import own_notes

    class Short:
        """A tokenizer that reads two words."""

        max_length, pad = 3, 0

        def encode(self, text: str) -> Any:
            words = [*range(1, len(text.split()) + 1)]
            chunks = [[*words[at : at + 2], 9] for at in range(0, len(words), 2)]
            ids = np.array([chunk + [0] * (3 - len(chunk)) for chunk in chunks])
            return type("Tokens", (), {"ids": ids})()

    mine, other = "my secret castle", 'her "secret" garden with a very long name of more than forty characters'
    notes = [*t5_notes(Short(), [mine, other]), "a hook was here"]  # type: ignore[arg-type]
    assert len(notes) == 3
    assert own_notes(notes, {other}) == [notes[0], "a hook was here"]
    assert own_notes(notes, {mine}) == notes[1:]
    assert own_notes(notes, ()) == notes
