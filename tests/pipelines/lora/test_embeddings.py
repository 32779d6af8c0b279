"""Textual inversion: the states are those of diffusers' load_textual_inversion, and no other text changes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.core.artifact import Artifact
from vitrify.core.device import Device
from vitrify.core.errors import BadInput
from vitrify.core.registry import load_runtime
from vitrify.pipelines.embeddings import Embedding, embed, free_ids, read_embedding
from vitrify.pipelines.prompt import PromptTokenizer
from vitrify.runtimes.base import Options

WIDTH = 64


@pytest.fixture(scope="session")
def tokenizer(artifact: Artifact) -> PromptTokenizer:
    return PromptTokenizer.from_folder(artifact.root / "tokenizer")


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((count, width)) * 0.5).astype(np.float32)


def encoded(
    artifact: Artifact, tokenizer: PromptTokenizer, prompt: str, changed: Any = None, runtime: str = "onnx"
) -> dict[str, np.ndarray]:
    component = artifact.components["text_encoder"]
    session = load_runtime(runtime).open(component, Device("cpu"), Options(threads=1), changed)
    return dict(session.run({"input_ids": tokenizer.encode(prompt).ids}))


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_states_are_diffusers(
    artifact: Artifact, tokenizer: PromptTokenizer, theirs: Any, tmp_path: Path, runtime: str
) -> None:
    pytest.importorskip("onnxruntime" if runtime == "onnx" else runtime, reason=f"the runtime {runtime} needs it")
    torch = pytest.importorskip("torch", reason="needs the extra export")
    save_file({"<cat-toy>": vectors(3)}, tmp_path / "toy.safetensors")
    save_file({"emb_params": vectors(1, seed=1)}, tmp_path / "easynegative.safetensors")
    theirs.load_textual_inversion(str(tmp_path), weight_name="toy.safetensors")
    theirs.load_textual_inversion(str(tmp_path), weight_name="easynegative.safetensors", token="easynegative")
    made = embed(
        artifact.components,
        {"text_encoder": tokenizer},
        [read_embedding(tmp_path / f"{name}.safetensors") for name in ("toy", "easynegative")],
    )
    changed, words = made.overrides["text_encoder"], made.tokenizers["text_encoder"]
    for prompt in ("a <cat-toy> on a table", "<cat-toy>", "easynegative, a red <cat-toy>s", "a green leaf"):
        text = theirs.maybe_convert_prompt(prompt, theirs.tokenizer)
        ids = theirs.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            wanted = theirs.text_encoder(ids)
        given = encoded(artifact, words, prompt, changed, runtime)
        for name in ("last_hidden_state", "pooler_output"):
            value = wanted[name].numpy()
            np.testing.assert_allclose(given[name], value, rtol=0, atol=1e-4 * np.ptp(value))
        plain = encoded(artifact, tokenizer, prompt, runtime=runtime)["last_hidden_state"]
        assert np.array_equal(plain, given["last_hidden_state"]) == (prompt == "a green leaf")
        again = encoded(artifact, tokenizer, prompt, runtime=runtime)["last_hidden_state"]
        np.testing.assert_array_equal(again, plain)


def test_pytorch_takes_the_same_table(artifact: Artifact, tokenizer: PromptTokenizer, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs vitrify[torch]")
    from dataclasses import replace

    from vitrify.export.torch_target import write_torch

    written = write_torch(artifact.components["text_encoder"], tmp_path)
    compiled = replace(artifact, components={**artifact.components, "text_encoder": written})
    toy = [Embedding("<toy>", {"text_encoder": vectors(2)})]
    results = []
    for one, runtime in ((artifact, "onnx"), (compiled, "torch")):
        made = embed(one.components, {"text_encoder": tokenizer}, toy)
        words, changed = made.tokenizers["text_encoder"], made.overrides["text_encoder"]
        results.append(encoded(one, words, "a <toy>", changed, runtime)["last_hidden_state"])
    np.testing.assert_allclose(results[0], results[1], rtol=0, atol=1e-4 * np.ptp(results[0]))


def test_no_text_gives_a_free_id(tokenizer: PromptTokenizer) -> None:
    free = free_ids(tokenizer)
    assert len(free) == 78
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(1, top, 60))) for top in (0x80, 0x250, 0x3000, 0xD7FF) for _ in range(300)]
    texts += ["ÀÁÂ ABC 'S 'Re İIıſK", "".join(map(chr, range(1, 0x250))), "".join(map(chr, range(0x1F300, 0x1FAFF)))]
    texts += [t.upper() for t in texts[:50]] + ["<|startoftext|> A <|endoftext|>"]
    seen = {int(i) for text in texts for i in tokenizer.encode(text, weights=False).ids.reshape(-1)}
    assert len(seen) > 1000
    assert not seen & set(free)
    assert not set(free) & {tokenizer.bos, tokenizer.eos, tokenizer.pad}


def test_a_tokenizer_that_keeps_capitals_has_fewer(tokenizer: PromptTokenizer) -> None:
    from tokenizers import Tokenizer, normalizers

    inner = Tokenizer.from_str(tokenizer._tokenizer.to_str())
    inner.normalizer = normalizers.NFC()
    other = PromptTokenizer(inner, tokenizer.max_length, tokenizer.bos, tokenizer.eos, tokenizer.pad)
    assert len(free_ids(other)) == 26
    assert set(free_ids(other)) < set(free_ids(tokenizer))


def test_words_stay_whole_in_their_chunk(tokenizer: PromptTokenizer) -> None:
    words = tokenizer.with_words({"<toy>": [32, 33, 34], "easyneg": [35]})
    assert list(words.encode("a (<TOY>:1.5) b").ids[0, :7]) == [49406, 320, 32, 33, 34, 321, 49407]
    np.testing.assert_allclose(words.encode("a (<toy>:1.5) b").weights[0, :7], [1, 1, 1.5, 1.5, 1.5, 1, 1])
    assert list(words.encode("easyneg, easynegs").ids[0, 1:3]) == [35, 267]
    assert 35 not in words.encode("easynegs, aeasyneg").ids
    full = "a " * 73
    ids = words.encode(f"{full}<toy> a").ids
    assert ids.shape == (2, 77)
    assert list(ids[0, 72:76]) == [320, 320, 49407, 49407]
    assert list(ids[1, :6]) == [49406, 32, 33, 34, 320, 49407]
    assert not {32, 33, 34} & set(tokenizer.encode("<toy>").ids[0].tolist()), "the first one is as it was"
    long = tokenizer.with_words({"<toy>": [32] * 80})
    assert [int((row == 32).sum()) for row in long.encode("a <toy>").ids] == [74, 6]
    more = words.with_words({"<other>": [40]})
    assert list(more.encode("<toy> <other>").ids[0, 1:5]) == [32, 33, 34, 40]


@pytest.mark.parametrize("word", ["cat", "<|endoftext|>", " ", ""])
def test_a_word_that_is_there_already_is_refused(tokenizer: PromptTokenizer, word: str) -> None:
    with pytest.raises(BadInput, match="vocabulary has the word"):
        tokenizer.with_words({word: [32]})


def test_two_encoders_get_their_own(artifact: Artifact, tokenizer: PromptTokenizer, tmp_path: Path) -> None:
    """As SDXL's: one file, two encoders, two tokenizers."""
    save_file({"clip_l": vectors(2), "clip_g": vectors(2, seed=1)}, tmp_path / "style.safetensors")
    style = read_embedding(tmp_path / "style.safetensors")
    assert style.word == "style"
    assert read_embedding(tmp_path / "style.safetensors", "<s>").word == "<s>"
    encoder = artifact.components["text_encoder"]
    names = ("text_encoder", "text_encoder_2")
    style = Embedding("<style>", style.vectors)
    made = embed(dict.fromkeys(names, encoder), dict.fromkeys(names, tokenizer), [style])
    for name in names:
        ((table, changed),) = made.overrides[name].items()
        assert table.endswith("token_embedding.weight")
        ids = made.tokenizers[name].encode("<style>").ids[0, 1:3]
        np.testing.assert_array_equal(changed[ids], style.vectors[name])
    said = "has vectors for text_encoder, text_encoder_2; this model's words go through text_encoder"
    with pytest.raises(BadInput, match=said):
        embed({"text_encoder": encoder}, {"text_encoder": tokenizer}, [style])
    alone = Embedding("<style>", {"text_encoder": vectors(2)})
    with pytest.raises(BadInput, match="words go through text_encoder, text_encoder_2"):
        embed(dict.fromkeys(names, encoder), dict.fromkeys(names, tokenizer), [alone])


def test_what_does_not_fit_is_named(artifact: Artifact, tokenizer: PromptTokenizer) -> None:
    def given(count: int, width: int = WIDTH, word: str = "<toy>") -> None:
        one = Embedding(word, {"text_encoder": vectors(count, width=width)})
        embed(artifact.components, {"text_encoder": tokenizer}, [one])

    given(78)
    with pytest.raises(BadInput, match=r"<toy> has vectors of 768 numbers; text_encoder takes 64"):
        given(1, 768)
    with pytest.raises(BadInput, match=r"have 79 vectors; text_encoder's vocabulary has 78 rows that no text uses"):
        given(79)
    with pytest.raises(BadInput, match="vocabulary has the word 'cat'"):
        given(1, word="cat")
    nothing = embed(artifact.components, {"text_encoder": tokenizer}, [])
    assert nothing.overrides == {"text_encoder": {}}
    assert nothing.tokenizers == {"text_encoder": tokenizer}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"a": vectors(1), "b": vectors(1)}, "is no textual inversion embedding: it holds a, b"),
        ({"clip_l": vectors(1), "x": vectors(1)}, "is no textual inversion embedding"),
        ({"clip_l": vectors(1), "clip_g": vectors(2)}, "different numbers of vectors"),
        ({"a": vectors(1).astype(np.int32)}, r"a is I32 \[1, 64\], not vectors"),
        ({"a": vectors(1)[None]}, r"a is F32 \[1, 1, 64\], not vectors"),
        ({"a": np.zeros((0, 64), np.float32)}, r"a is F32 \[0, 64\], not vectors"),
        ({"a": vectors(1) * np.nan}, "a holds NaN"),
    ],
)  # fmt: skip
def test_what_is_no_embedding_is_refused(tmp_path: Path, tensors: dict[str, np.ndarray], said: str) -> None:
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=said):
        read_embedding(tmp_path / "x.safetensors")


def test_forms_of_files(tmp_path: Path) -> None:
    for name, tensor, word in (("emb_params", vectors(2), "bad-hands"), ("<x>", vectors(1)[0], "<x>")):
        save_file({name: tensor}, tmp_path / "bad-hands.safetensors")
        read = read_embedding(tmp_path / "bad-hands.safetensors")
        assert read.word == word
        np.testing.assert_array_equal(read.vectors["text_encoder"], np.atleast_2d(tensor))
    (tmp_path / "old.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BadInput, match="pickle"):
        read_embedding(tmp_path / "old.safetensors")
