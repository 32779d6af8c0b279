"""What stays on a device together: decided from sizes, and held against pictures that must not change."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact, Component
from vitrify.core.device import Device
from vitrify.core.errors import DeviceError, RuntimeFailure, UsageError
from vitrify.pipelines import offload as module
from vitrify.pipelines.budget import session_bytes
from vitrify.pipelines.components import Components
from vitrify.pipelines.offload import Offload, Wish, decide
from vitrify.runtimes.base import Options

CPU, GPU = Device("cpu"), Device("cuda", 0)
PROMPT = "a red apple"


@pytest.fixture(scope="module")
def components(diffusion_artifact: Path) -> dict[str, Component]:
    return dict(Artifact.load(diffusion_artifact).components)


@pytest.fixture
def gpu(components: dict[str, Component], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """gpu(1.5): the decision for a GPU whose free memory is so many times all components'; it needs no GPU."""
    sizes = {n: session_bytes(c) for n, c in components.items()}
    required = ["text_encoder", "unet", "vae_decoder"]

    def decided(share: float | None, wish: Wish | None = None, streams: bool = False, **options: Any) -> Any:
        free = None if share is None else int(share * sum(sizes[n] for n in required) / module._SHARE)
        monkeypatch.setattr(module, "free_memory", lambda device: free)
        devices = dict.fromkeys(components, GPU)
        return decide(list(components.values()), required, devices, Options(**options), wish or Wish(), streams)

    return decided


def test_what_fits_stays(gpu: Callable[..., Any]) -> None:
    done = gpu(1.1)
    assert done.budget is None
    assert done.reason.endswith("all stay on it")
    assert "cuda:0 may use" in done.reason


def test_what_does_not_fit_together_works_in_turn(gpu: Callable[..., Any]) -> None:
    done = gpu(0.9)
    assert done.reason.endswith("they work in turn")
    assert done.budget.device == "cuda:0"
    assert done.budget.bounded
    assert done.budget.peak() is None, "nobody measures a GPU's memory here"


def test_a_component_that_does_not_fit_alone(gpu: Callable[..., Any]) -> None:
    with pytest.raises(DeviceError, match=r"unet alone needs about .*on cuda:0.*--place unet=cpu"):
        gpu(0.1)
    done = gpu(0.1, streams=True)
    assert "weights are streamed in" in done.reason
    assert done.options.resident_weights > 0
    assert done.budget.in_turn


def test_a_user_decides(gpu: Callable[..., Any]) -> None:
    assert gpu(0.1, Wish(Offload.NONE)).budget is None
    assert gpu(None, Wish(memory=10**12)).budget.bounded, "a bound is one also where everything fits"
    for wish, options in ((Wish(Offload.NONE, 10**9), {}), (Wish(memory=10**9), {"resident_weights": 5})):
        with pytest.raises(UsageError, match="takes components in turn"):
            gpu(9, wish, **options)
    with pytest.raises(UsageError, match="is not known"):
        gpu(None, Wish(Offload.WEIGHTS), streams=True)
    assert gpu(9, Wish(Offload.COMPONENTS)).budget.in_turn
    assert gpu(9, Wish(Offload.WEIGHTS), streams=True).options.resident_weights is not None
    assert gpu(0.1, resident_weights=7).options.resident_weights == 7
    with pytest.raises(UsageError, match="do not stream weights"):
        gpu(9, Wish(Offload.WEIGHTS))
    with pytest.raises(DeviceError, match=r"may use 0\.0 GB"):
        gpu(None, Wish(memory=10))


def test_memory_that_is_bounded_is_not_spent_on_time(components: dict[str, Component]) -> None:
    devices = dict.fromkeys(components, CPU)
    for wish, kept in ((Wish(), True), (Wish(Offload.COMPONENTS), False), (Wish(memory=10**12), False)):
        options = decide(list(components.values()), ["unet"], devices, Options(), wish, False).options
        assert (options.winograd, options.arena) == (kept, kept)


def test_memory_that_nobody_tells_decides_nothing(gpu: Callable[..., Any]) -> None:
    done = gpu(None)
    assert (done.budget, done.reason) == (None, "")


def test_what_runs_elsewhere_is_not_counted(components: dict[str, Component], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: session_bytes(components["unet"]) * 1.2)
    devices = dict.fromkeys(components, CPU) | {"unet": GPU}
    done = decide(list(components.values()), ["text_encoder", "unet"], devices, Options(), Wish(), False)
    assert done.budget is None
    spread = devices | {"vae_decoder": Device("cuda", 1)}
    assert decide(list(components.values()), ["unet"], spread, Options(), Wish(), False).budget is None
    with pytest.raises(UsageError, match="of one device, not of cuda:0, cuda:1"):
        decide(list(components.values()), ["unet"], spread, Options(), Wish(memory=9), False)


def test_one_component_at_a_time_draws_the_same_picture(diffusion_artifact: Path) -> None:
    wanted: Any = vitrify.load(diffusion_artifact, "cpu")
    plain = wanted.generate(PROMPT, steps=3, seed=3)
    wanted.close()
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", offload="components", prompt_bytes=0)
    for _ in range(2):
        result = pipeline.generate(PROMPT, steps=3, seed=3)
        assert len(list(pipeline.sessions)) == 1
        np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(plain.images[0]))
    assert result.memory["budget"] is None
    assert result.memory["done"] == [
        "text_encoder closed for unet", "unet called once a row", "unet closed for vae_decoder",
        "vae_decoder closed for text_encoder",
    ]  # fmt: skip
    pipeline.close()


def test_the_command_line_says_how_to_offload(
    vitrify: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    asked = ["generate", diffusion_artifact, PROMPT, "-o", tmp_path / "a.png", "--steps", 2, "--device", "cpu"]
    done = vitrify(*asked, "--offload", "components")
    assert done.code == 0, done.err
    assert "unet closed for vae_decoder" in done.err
    refused = vitrify(*asked, "--offload", "weights", "--json")
    assert (refused.code, refused.error["code"]) == (2, "usage")
    assert "do not stream weights" in refused.error["what"]


def test_never_more_than_one_is_open_at_a_time(diffusion_artifact: Path) -> None:
    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", offload="components", prompt_bytes=0)
    openers, open_now, most = pipeline.sessions._openers, set(), []
    for name, opener in list(openers.items()):

        def watched(changed: Any, name: str = name, opener: Any = opener) -> Any:
            session = opener(changed)
            open_now.add(name)
            most.append(len(open_now))
            close = session.close
            session.close = lambda: (open_now.discard(name), close())
            return session

        openers[name] = watched
    for _ in range(2):
        pipeline.generate(PROMPT, steps=2, seed=3)
    assert len(most) == 6
    assert max(most) == 1
    pipeline.close()


class Opened:
    """A session that only opens and closes."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


def test_a_component_is_opened_ahead_in_a_thread_of_its_own() -> None:
    go, threads = threading.Event(), []

    def slow(_: Any) -> Any:
        threads.append(threading.current_thread())
        go.wait(10)
        return Opened()

    sessions = Components({"unet": slow}, beside=["unet"])
    sessions.ahead("unet")
    sessions.ahead("unet")
    assert list(sessions) == []
    go.set()
    first: Any = sessions["unet"]
    assert first is sessions["unet"]
    assert len(threads) == 1
    assert threads[0] is not threading.current_thread()
    plain = Components({"unet": lambda _: Opened()})
    plain.ahead("unet")  # of a runtime that must not be opened beside another one
    assert plain._coming == {}


def test_what_goes_wrong_ahead_is_told_when_it_is_needed_and_once() -> None:
    outcomes = iter([RuntimeFailure("It is full.", "Wait."), Opened()])

    def opener(_: Any) -> Any:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    sessions = Components({"unet": opener}, beside=["unet"])
    sessions.ahead("unet")
    with pytest.raises(RuntimeFailure, match="It is full"):
        sessions["unet"]
    assert isinstance(sessions["unet"], Opened)


def test_what_was_opened_ahead_is_closed_with_the_rest() -> None:
    made: list[Opened] = []

    def opener(_: Any) -> Any:
        made.append(Opened())
        return made[-1]

    sessions = Components({"unet": opener}, beside=["unet"])
    sessions.ahead("unet")
    sessions.close()
    assert [one.closed for one in made] == [True]
