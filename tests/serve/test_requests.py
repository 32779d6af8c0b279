"""What a client asks for: what is written of it, what shares a call, and what it costs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vitrify.serve.requests import ControlRequest, GenerateRequest, models_of, request_from_json

PLAIN = GenerateRequest("m", "a fox", 64, 32, steps=10, seed=1)
FULL = replace(
    PLAIN, image=b"IMAGE", mask=b"MASK", strength=0.5, hooks=("words",), loras={"a": 0.5, "b": (1.0, 0.25)},
    control=(ControlRequest("n", b"LINES", "canny", 0.5, 0.1, 0.9), ControlRequest("n", b"EDGES")),
)  # fmt: skip
SAVED = replace(
    PLAIN, step_cache="3", guidance_interval=(0.25, 0.75), guidance_every=2, decoder="preview", preset="fast"
)


@pytest.mark.parametrize(
    "request_",
    [
        PLAIN,
        SAVED,
        FULL,
        replace(FULL, mask=None),
        replace(FULL, image=None, mask=None),
        replace(FULL, control=(), hooks=()),
    ],
)
def test_it_is_read_back_as_it_was(request_: GenerateRequest, tmp_path: Path) -> None:
    for number, data in enumerate(request_.pictures):
        (tmp_path / f"input-{number}").write_bytes(data)
    said = request_.to_json()
    assert request_from_json(said, tmp_path) == request_
    known = request_from_json(said, None)
    assert known == request_.without_data()
    assert known.to_json() == said
    assert known.cost == request_.cost
    assert not any(getattr(known, "pictures", ()))


def test_pictures_are_no_part_of_what_is_written() -> None:
    said = FULL.to_json()
    assert said["pictures"] == ["image", "mask"]
    assert said["control"][0] == {"net": "n", "made_by": "canny", "strength": 0.5, "start": 0.1, "end": 0.9}
    assert said["loras"] == {"a": 0.5, "b": [1.0, 0.25]}
    for data in FULL.pictures:
        assert data.decode() not in str(said)
        assert data.decode() not in repr(FULL)


def test_what_a_version_before_wrote_is_read() -> None:
    old = {"kind": "generate", "model": "m", "prompt": "a fox", "width": 64, "height": 32, "steps": 10, "seed": 1}
    assert request_from_json(old, None) == PLAIN


def test_what_leaves_out_nothing_is_written_as_before() -> None:
    """So that an Idempotency-Key of a version before is that of the same request."""
    assert not {"step_cache", "guidance_interval", "guidance_every", "decoder", "preset"} & set(PLAIN.to_json())
    assert SAVED.to_json()["guidance_interval"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({}, 10), ({"strength": 0.3}, 10), ({"image": b"x"}, 8), ({"image": b"x", "mask": b"x"}, 10),
        ({"image": b"x", "strength": 0.3}, 3), ({"image": b"x", "strength": 0.01}, 1),
    ],
)  # fmt: skip
def test_of_a_picture_only_a_share_of_the_steps_is_done(changed: dict[str, object], steps: int) -> None:
    request = replace(PLAIN, **changed, images=2)  # type: ignore[arg-type]
    assert request.steps_done == steps
    assert request.cost == 64 * 32 * steps * 2


def test_what_shares_a_call() -> None:
    other = replace(PLAIN, prompt="a cat", seed=7, images=3)
    assert PLAIN.shape() == other.shape() is not None
    for changed in ({"loras": {"a": 1.0}}, {"hooks": ()}, {"scheduler": "euler"}, {"steps": 11}):
        assert replace(PLAIN, **changed).shape() not in (None, PLAIN.shape())  # type: ignore[arg-type]
    assert replace(PLAIN, image=b"x").shape() is None
    assert replace(PLAIN, control=FULL.control).shape() is None


def test_only_what_leaves_out_the_same_shares_a_call() -> None:
    assert SAVED.shape() == replace(SAVED, prompt="a cat", seed=7).shape()
    for changed in ({"step_cache": "2"}, {"guidance_interval": (0.0, 0.75)}, {"guidance_every": 1}, {"decoder": "vae"}):
        other = replace(SAVED, **changed)  # type: ignore[arg-type]
        assert other.shape() not in (None, SAVED.shape(), PLAIN.shape())
    assert replace(PLAIN, step_cache="0.1").shape() is None, "the features of others would decide its steps"


@pytest.mark.parametrize(
    ("changed", "share"),
    [
        ({"decoder": "preview"}, 1.0), ({"step_cache": "0.1"}, 1.0),
        ({"guidance_every": 2}, 0.75), ({"guidance_interval": (0.2, 0.6)}, 0.7),
        ({"step_cache": "2"}, 0.55), ({"step_cache": "5"}, 0.28),
        # whole at 0 with both, 3 with the prompt alone, 6, 9: (2+2*.2) + (1+2*.1) + (2+2*.2) + 1 of 20
        ({"step_cache": "3", "guidance_every": 2}, 0.35),
        ({"guidance_every": 2, "guidance": 1.0}, 1.0), ({"guidance_interval": (0.2, 0.6), "guidance": 0.0}, 1.0),
        ({"step_cache": "2", "guidance": 1.0}, 0.55),
    ],
)  # fmt: skip
def test_what_is_left_out_costs_nothing(changed: dict[str, object], share: float) -> None:
    request = replace(PLAIN, width=128, height=128, images=3, **changed)  # type: ignore[arg-type]
    assert request.cost == round(128 * 128 * 10 * share) * 3
    assert request.cost // request.images * request.images == request.cost


def test_the_models_that_it_needs() -> None:
    assert models_of(PLAIN) == ("m",)
    assert models_of(FULL) == ("m", "n")
