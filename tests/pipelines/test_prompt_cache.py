"""Prompts that come again: not encoded, the same bits; other weights, runtimes and damaged entries are no hits."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

import vitrify
from vitrify.core.artifact import Artifact, Component
from vitrify.core.cache import Cache
from vitrify.core.errors import BadInput, NotFinite, UsageError
from vitrify.core.tensors import DType, TensorSpec
from vitrify.pipelines.components import Components
from vitrify.pipelines.prompt_cache import Encoding, Memory, Prompts, Remember, digest_of, encoding
from vitrify.runtimes.base import Options
from vitrify.runtimes.forwarding import ForwardingSession
from vitrify.runtimes.stored import stored_weights

PROMPT, NEGATIVE = "a red apple", "a blue one"
REQUEST: dict[str, Any] = {"negative_prompt": NEGATIVE, "steps": 2, "guidance": 3, "seed": 5}


@pytest.fixture
def opened(diffusion_artifact: Path) -> Iterator[Callable[..., Any]]:
    """opened(**options): a pipeline of the built-in model, closed at the end."""
    pipelines: list[Any] = []

    def load(**options: Any) -> Any:
        pipelines.append(vitrify.load(diffusion_artifact, "cpu", **options))
        return pipelines[-1]

    yield load
    for pipeline in pipelines:
        pipeline.close()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """An empty cache folder of the test's own."""
    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    return Cache()


@pytest.fixture
def lora(diffusion_artifact: Path, tmp_path: Path) -> Callable[..., Path]:
    """lora(seed, component): a file that changes attention of one component."""

    def make(seed: int = 0, component: str = "text_encoder") -> Path:
        rng, tensors = np.random.default_rng(seed), {}
        for name, weight in stored_weights(Artifact.load(diffusion_artifact).components[component]).items():
            if "attn" in name and weight.shape is not None and len(weight.shape) == 2:
                layer = f"{component}.{name.removesuffix('.weight')}"
                tensors[f"{layer}.lora_A.weight"] = rng.standard_normal((2, weight.shape[1])).astype(np.float32) * 0.1
                tensors[f"{layer}.lora_B.weight"] = rng.standard_normal((weight.shape[0], 2)).astype(np.float32) * 0.1
        path = tmp_path / f"{component}-{seed}.safetensors"
        save_file(tensors, path)
        return path

    return make


def encoded(pipeline: Any, prompt: str = PROMPT) -> tuple[Encoding, Mapping[str, np.ndarray]]:
    """What a prompt and its negative one took, and what the denoiser is given."""
    with encoding(pipeline.family.sessions) as found:
        rows = pipeline.family.encode_prompt([prompt], NEGATIVE, (pipeline.height, pipeline.width), 3.0).rows()
    return found, rows


def counts(found: Encoding) -> tuple[int, int]:
    return found.cached, found.ran


def is_open(pipeline: Any) -> bool:
    return "text_encoder" in list(pipeline.sessions)


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    assert list(one) == list(other)
    return all(np.array_equal(one[name], other[name]) for name in one)


def test_a_prompt_that_comes_again_is_not_encoded(opened: Callable[..., Any]) -> None:
    plain, pipeline = opened(prompt_bytes=0), opened()
    _, wanted = encoded(plain)
    first, rows = encoded(pipeline)
    assert (counts(first), first.to_json()) == ((0, 2), {"encode_cached": 0})
    assert same(rows, wanted)
    del pipeline.sessions["text_encoder"]
    again, rows = encoded(pipeline)
    assert (counts(again), again.to_json()) == ((2, 0), {"encode_cached": 2})
    assert same(rows, wanted)
    assert not is_open(pipeline), "what is known opens nothing"
    assert counts(encoded(pipeline, "a green apple")[0]) == (1, 1), "the negative prompt is known"
    for _ in range(2):
        assert encoded(plain)[0].to_json() == {}, "nothing remembers there"


def test_pictures_are_the_same_with_and_without(opened: Callable[..., Any]) -> None:
    wanted = opened(prompt_bytes=0).generate([PROMPT, "a fox"], **REQUEST)
    pipeline = opened()
    results = [pipeline.generate([PROMPT, "a fox"], **REQUEST) for _ in range(2)]
    for result in results:
        for mine, other in zip(result.images, wanted.images, strict=True):
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(other))
    assert [result.timings["encode_cached"] for result in results] == [0, 3]
    assert "encode_cached" not in wanted.timings


def test_what_a_caller_writes_changes_no_later_answer(opened: Callable[..., Any]) -> None:
    session = opened().family.sessions["text_encoder"]
    ids = np.zeros((1, 77), session.inputs["input_ids"].dtype.value)
    wanted = {name: value.copy() for name, value in session.run({"input_ids": ids}).items()}
    assert set(wanted) == set(session.outputs)
    for _ in range(2):
        answer = session.run({"input_ids": ids})
        assert same(answer, wanted)
        for value in answer.values():
            value[...] = 7


def test_changed_weights_have_answers_of_their_own(opened: Callable[..., Any], lora: Callable[..., Path]) -> None:
    pipeline, style = opened(), str(lora())
    _, plain = encoded(pipeline)
    pipeline.adapters.lay_on({style: 1.0})
    found, styled = encoded(pipeline)
    assert counts(found) == (0, 2)
    assert not same(styled, plain)
    for strength, known in ((0.5, (0, 2)), (1.0, (2, 0)), (0.0, (2, 0)), (0.5, (2, 0))):
        pipeline.adapters.lay_on({style: strength})
        found, rows = encoded(pipeline)
        assert counts(found) == known
        assert same(rows, plain) is (strength == 0.0)
        assert same(rows, styled) is (strength == 1.0)
    pipeline.adapters.lay_on({str(lora(1)): 1.0})
    assert counts(encoded(pipeline)[0]) == (0, 2), "another file"
    pipeline.adapters.lay_on({str(lora(0, "unet")): 1.0})
    found, rows = encoded(pipeline)
    assert counts(found) == (2, 0), "it changes the denoiser alone"
    assert same(rows, plain)


def test_a_taught_word_is_encoded_and_what_was_before_holds_again(opened: Callable[..., Any], tmp_path: Path) -> None:
    pipeline, prompt = opened(), "a <toy> apple"
    _, plain = encoded(pipeline, prompt)
    width = pipeline.family.sessions["text_encoder"].outputs["last_hidden_state"].shape[-1]
    vectors = np.random.default_rng(0).standard_normal((2, width)).astype(np.float32)
    save_file({"<toy>": vectors}, tmp_path / "toy.safetensors")
    pipeline.adapters.add_embedding(tmp_path / "toy.safetensors")
    found, taught = encoded(pipeline, prompt)
    assert counts(found) == (0, 2)
    assert not same(taught, plain)
    assert counts(encoded(pipeline, prompt)[0]) == (2, 0)
    pipeline.adapters.forget_embeddings()
    found, rows = encoded(pipeline, prompt)
    assert counts(found) == (2, 0)
    assert same(rows, plain)


def test_two_threads_encode_a_prompt_once(opened: Callable[..., Any]) -> None:
    pipeline = opened(free_text_encoders=True)
    start, found = threading.Barrier(4), []

    def work() -> None:
        start.wait()
        found.append(encoded(pipeline))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert sum(one.ran for one, _ in found) == 2
    assert sum(one.cached for one, _ in found) == 6
    assert all(same(rows, found[0][1]) for _, rows in found)
    assert not is_open(pipeline)


def test_the_longest_unused_answers_go_first() -> None:
    def answer(number: int) -> dict[str, np.ndarray]:
        return {"a": np.full(50, number, np.float32), "b": np.full(50, number, np.float32)}

    memory = Memory(1000)
    memory.put("one", answer(1))
    memory.put("two", answer(2))
    assert (len(memory), memory.bytes) == (2, 800)
    assert memory.get("one") is not None
    memory.put("three", answer(3))
    assert (len(memory), memory.bytes) == (2, 800)
    assert memory.get("two") is None
    assert same(memory.get("one") or {}, answer(1))
    memory.put("one", answer(4))
    assert memory.bytes == 800
    assert same(memory.get("one") or {}, answer(4))
    memory.put("large", {"a": np.zeros(251, np.float32)})
    assert memory.get("large") is None
    assert len(memory) == 2, "what is not kept puts out nothing"


def test_a_small_bound_forgets(opened: Callable[..., Any]) -> None:
    one = opened()
    encoded(one)
    size = sum(
        v.nbytes for v in one.family.sessions["text_encoder"].run({"input_ids": np.zeros((1, 77), "int64")}).values()
    )
    pipeline = opened(prompt_bytes=2 * size)
    encoded(pipeline)
    assert counts(encoded(pipeline)[0]) == (2, 0)
    encoded(pipeline, "a fox")
    assert counts(encoded(pipeline)[0])[1] >= 1


def test_an_answer_is_known_by_names_types_shapes_and_numbers() -> None:
    ids = np.arange(6, dtype=np.int64)
    keys = [
        digest_of({"a": ids}), digest_of({"b": ids}), digest_of({"a": ids.reshape(2, 3)}), digest_of({"a": ids[::-1]}),
        digest_of({"a": ids.view(np.uint64)}), digest_of({"a": ids}, "changed"), digest_of({"a": ids, "b": ids}),
        digest_of({"a": ids[:1].reshape(())}), digest_of({"a": ids[:1]}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert digest_of({"b": ids, "a": ids}) == digest_of({"a": ids.copy(), "b": ids})


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_nan_is_not_kept(opened: Callable[..., Any], lora: Callable[..., Path], own_cache: Cache) -> None:
    pipeline = opened(prompt_cache=True)
    pipeline.adapters.lay_on({str(lora()): 1e38})
    for _ in range(2):
        with pytest.raises(NotFinite, match="text_encoder"), encoding(pipeline.family.sessions) as found:
            pipeline.family.encode_prompt([PROMPT], NEGATIVE, (64, 64), 3.0)
        assert counts(found) == (0, 1)
    assert own_cache.entries() == []


def test_a_session_that_somebody_put_there_is_run_each_time(opened: Callable[..., Any]) -> None:
    class Counting(ForwardingSession):
        runs = 0

        def run(self, tensors: Any) -> Any:
            self.runs += 1
            return super().run(tensors)

    pipeline = opened()
    _, plain = encoded(pipeline)
    pipeline.sessions["text_encoder"] = watched = Counting(pipeline.sessions["text_encoder"])
    for _ in range(2):
        found, rows = encoded(pipeline)
        assert counts(found) == (0, 2)
        assert same(rows, plain)
    assert watched.runs == 4


def test_the_next_process_opens_no_text_encoder_for_a_prompt_on_disk(
    opened: Callable[..., Any], own_cache: Cache, lora: Callable[..., Path]
) -> None:
    plain = opened().generate(PROMPT, **REQUEST)
    assert own_cache.entries() == [], "only where it is asked for"
    first = opened(prompt_cache=True)
    assert not is_open(first)
    assert counts(encoded(first)[0]) == (0, 2)
    assert {entry.kind for entry in own_cache.entries()} == {"prompts"}
    assert len(own_cache.entries()) == 2
    second = opened(prompt_cache=True)
    result = second.generate(PROMPT, **REQUEST)
    np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(plain.images[0]))
    assert not is_open(second)
    assert "text_encoder" not in result.placement, "nothing ran it"
    assert counts(encoded(second)[0]) == (2, 0)
    second.adapters.lay_on({str(lora()): 1.0})
    assert counts(encoded(second)[0]) == (0, 2)
    third = opened(prompt_cache=True, prompt_bytes=0)
    third.adapters.lay_on({str(lora()): 1.0})
    assert counts(encoded(third)[0]) == (2, 0)
    assert not is_open(third)


def test_other_options_and_runtimes_have_entries_of_their_own(opened: Callable[..., Any], own_cache: Cache) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    encoded(opened(prompt_cache=True))
    arena = opened(prompt_cache=True, options=Options(arena=False))
    assert counts(encoded(arena)[0]) == (2, 0), "it changes no number"
    prepack = opened(prompt_cache=True, options=Options(prepack=False))
    assert counts(encoded(prepack)[0]) == (0, 2)
    for expected in ((0, 2), (2, 0)):
        assert counts(encoded(opened(prompt_cache=True, runtime="openvino"))[0]) == expected
    winograd = opened(prompt_cache=True, runtime="openvino", options=Options(winograd=False))
    assert counts(encoded(winograd)[0]) == (2, 0), "text encoders have no convolutions"
    assert len(own_cache.entries()) == 6


def test_other_weights_have_entries_of_their_own(diffusion_artifact: Path, own_cache: Cache, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(diffusion_artifact, copy)
    for expected in ((0, 2), (2, 0), (0, 2)):
        pipeline: Any = vitrify.load(copy, "cpu", prompt_cache=True)
        assert counts(encoded(pipeline)[0]) == expected
        pipeline.close()
        if expected == (2, 0):
            (weights,) = Artifact.load(copy).components["text_encoder"].weights
            data = bytearray((copy / weights.path).read_bytes())
            data[-2:] = bytes(2)  # the manifest still has the old hash
            (copy / weights.path).write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "short", "flipped", "text", "gone"])
def test_a_damaged_entry_is_encoded_again(opened: Callable[..., Any], own_cache: Cache, how: str) -> None:
    _, plain = encoded(opened(prompt_cache=True))
    for entry in own_cache.entries():
        file = entry.path / "states.safetensors"
        data = bytearray(file.read_bytes())
        if how == "gone":
            file.unlink()
            continue
        flipped = bytes((*data[:-9], data[-9] ^ 1, *data[-8:]))
        file.write_bytes({"empty": b"", "short": bytes(data[:-4]), "flipped": flipped, "text": b"no tensors"}[how])
    found, rows = encoded(opened(prompt_cache=True))
    assert counts(found) == (0, 2)
    assert same(rows, plain)
    assert counts(encoded(opened(prompt_cache=True))[0]) == (2, 0), "the damaged ones were replaced"


def test_a_full_disk_stops_no_drawing_and_is_told_once(
    opened: Callable[..., Any], small_disk: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE", str(small_disk(16_000)))
    said: list[str] = []
    pipeline = opened(prompt_cache=True, say=said.append)
    for prompt in (PROMPT, "a fox"):
        encoded(pipeline, prompt)
        assert counts(encoded(pipeline, prompt)[0]) == (2, 0), "memory remembers"
    (told,) = [line for line in said if "prompts are not kept" in line]
    assert "is full" in told
    assert Cache().entries() == []


def test_a_bound_that_is_no_number_is_an_error_where_the_disk_is_used(
    opened: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "much")
    opened()
    with pytest.raises(UsageError, match="VITRIFY_CACHE_MAX"):
        opened(prompt_cache=True)


def test_text_encoders_are_closed_once_the_prompt_is_encoded(opened: Callable[..., Any]) -> None:
    wanted = opened(prompt_bytes=0).generate(PROMPT, **REQUEST)
    pipeline = opened(free_text_encoders=True)
    assert not is_open(pipeline)
    open_in_loop: list[bool] = []
    for prompt in (PROMPT, PROMPT, "a fox"):
        result = pipeline.generate(prompt, **REQUEST, on_step=lambda step: open_in_loop.append(is_open(pipeline)))
        assert result.placement == wanted.placement, "what was closed ran too"
        if prompt == PROMPT:
            np.testing.assert_array_equal(np.asarray(result.images[0]), np.asarray(wanted.images[0]))
    assert not any(open_in_loop)
    assert "unet" in list(pipeline.sessions)


def test_a_text_encoder_is_not_closed_while_another_request_needs_it(opened: Callable[..., Any]) -> None:
    pipeline = opened(free_text_encoders=True)
    with encoding(pipeline.family.sessions):
        encoded(pipeline)
        assert is_open(pipeline)
    assert not is_open(pipeline)
    with pytest.raises(BadInput, match="Unicode"), encoding(pipeline.family.sessions):
        pipeline.family.encode_prompt([*encoded(pipeline, "a fox")[1], "\ud800"], NEGATIVE, (64, 64), 3.0)
    assert not is_open(pipeline), "also where it failed"


def test_one_component_at_a_time_is_not_put_out_for_a_known_prompt(opened: Callable[..., Any]) -> None:
    pipeline = opened(offload="components")
    encoded(pipeline)
    pipeline.sessions["unet"]
    assert counts(encoded(pipeline)[0]) == (2, 0)
    assert list(pipeline.sessions) == ["unet"]


def test_of_all_layers_the_one_that_is_used_is_kept() -> None:
    states = TensorSpec(DType.FLOAT32, ("batch", 77, 8))
    outputs = {name: states for name in ("last_hidden_state", "text_embeds", "hidden_states.0", "hidden_states.1")}
    inputs = {"input_ids": TensorSpec(DType.INT64, ("batch", 77))}
    parts = {name: Component(name, "onnx", "", inputs, outputs) for name in ("text_encoder", "text_encoder_2")}
    sessions = Components({}, parts=parts)
    prompts = Prompts(sessions, {"text": {"states": {"text_encoder": "hidden_states.1"}}}, Remember())
    assert list(prompts["text_encoder"].outputs) == ["last_hidden_state", "text_embeds", "hidden_states.1"]
    assert list(prompts["text_encoder_2"].outputs) == list(outputs)


def test_a_server_has_settings_for_it(diffusion_artifact: Path, own_cache: Cache) -> None:
    pytest.importorskip("pydantic_settings", reason="needs vitrify[serve]")
    from vitrify.serve.models import Models
    from vitrify.serve.run import worker_settings
    from vitrify.serve.settings import Settings

    plain, paths = Settings(), {"emoji": diffusion_artifact}
    assert worker_settings(plain, paths, "cpu").remember == Remember()
    given = Settings(prompt_bytes=1_000_000, free_text_encoders=True)
    remember = worker_settings(given, paths, "cpu").remember
    assert remember == Remember(1_000_000, False, True)
    models = Models(paths, device="cpu", remember=remember)
    pipeline = models.get("emoji")
    assert sorted(pipeline.sessions) == ["unet", "vae_decoder"]
    encoded(pipeline)
    assert not is_open(pipeline)
    models.close_all()


def test_the_command_opens_no_text_encoder_for_a_prompt_that_was_drawn(
    diffusion_artifact: Path, tmp_path: Path, vitrify: Callable[..., Any]
) -> None:
    asked = ["generate", diffusion_artifact, PROMPT, "--steps", 2, "--seed", 3, "--prompt-cache", "--json"]
    cache, found = tmp_path / "cache", []
    for number in range(2):
        more = ["-o", tmp_path / f"{number}.png", *(["--free-text-encoders"] if number else [])]
        done = vitrify(*asked, *more, VITRIFY_CACHE=str(cache))
        assert done.code == 0, done.err
        found.append(done.json)
    assert [one["timings"]["encode_cached"] for one in found] == [0, 2]
    assert ["text_encoder" in one["placement"] for one in found] == [True, False]
    np.testing.assert_array_equal(*(np.asarray(Image.open(tmp_path / f"{number}.png")) for number in range(2)))
