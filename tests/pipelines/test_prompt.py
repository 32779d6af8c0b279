"""Prompts: the weight syntax, ids equal to transformers' CLIPTokenizer, chunks and weights."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput, DiskError
from vitrify.pipelines.prompt import (
    BREAK,
    PromptTokenizer,
    apply_weights,
    fill_chunks,
    join_chunks,
    parse_weights,
    write_tokenizer_json,
)

HERE = Path(__file__).resolve()
BOS, EOS = 49406, 49407

PROMPTS = [
    "",
    " ",
    "a photograph of an astronaut riding a horse",
    "a red fox, {curly} & <b>",
    "  Many   SPACES\tand\nlines  ",
    "it's we're I'd they've he'll 'twas don't",
    "1girl 2024 3.14159 1,000,000 007",
    "café naïve Ünïcödé façade cafe\u0301 İstanbul ǅ ﬁ",
    "你好世界 こんにちは 안녕 Привет мир שלום مرحبا नमस्ते",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 ❤️ 👍🏽 🇩🇪",
    "!!! ??? ... --- *** #hash @at $5 50% ^_^ ~ `code` \\ / |",
    "wow!! so (nice) [really] <|endoftext|> after <|startoftext|>!",
    "zero\u200bwidth \u00a0nbsp \u3000wide \ufeffbom \x00nul \x07bell",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "BREAK and \"quotes\" and 'single' and “curly” \u2013 dash — long …",
]


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with CLIP's vocab.json and merges.txt: those inside the built-in model's tokenizer.json."""
    model = json.loads((HERE.parents[2] / "demo/models/emoji-diffusion/tokenizer/tokenizer.json").read_text())["model"]
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    return folder


@pytest.fixture(scope="session")
def folder_with(vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a tokenizer folder: CLIP's vocabulary with the JSON files given by stem."""

    def make(**files: Any) -> Path:
        folder = tmp_path_factory.mktemp("tokenizer")
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(vocabulary / name, folder)
        for stem, data in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(data))
        return folder

    return make


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> PromptTokenizer:
    return PromptTokenizer.from_folder(vocabulary, max_length=77)


def reference(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers", reason="needs transformers as the reference")
    return transformers.CLIPTokenizer.from_pretrained(folder)


def reference_ids(tokenizer: Any, prompt: str) -> Any:
    """What diffusers' StableDiffusionPipeline.encode_prompt asks of its tokenizer."""
    return tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids


def plain(text: str) -> list[tuple[str, float]]:
    return [(text, 1.0)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", plain("")),
        ("a red fox, {curly} & <b>", plain("a red fox, {curly} & <b>")),
        ("a fox: red", plain("a fox: red")),
        ("(fox)", [("fox", 1.1)]),
        ("((fox))", [("fox", 1.21)]),
        ("a (fox:1.3) here", [("a ", 1.0), ("fox", 1.3), (" here", 1.0)]),
        ("(fox: 1.3 )", [("fox", 1.3)]),
        ("(fox:.5)(cat:+2)(dog:-1)", [("fox", 0.5), ("cat", 2.0), ("dog", -1.0)]),
        ("[fox]", [("fox", 1 / 1.1)]),
        ("[[fox]]", [("fox", 1 / 1.21)]),
        ("([fox])", plain("fox")),
        ("((a:1.5) b)", [("a", 1.65), (" b", 1.1)]),
        (r"a \(fox\) \[b\] \\", plain(r"a (fox) [b] \ ".rstrip(" "))),
        (r"(fox \(red\):1.2)", [("fox (red)", 1.2)]),
        (r"c:\x", plain("c:x")),
        ("a (fox", [("a ", 1.0), ("fox", 1.1)]),
        ("a [fox", [("a ", 1.0), ("fox", 1 / 1.1)]),
        ("a ((fox", [("a ", 1.0), ("fox", 1.21)]),
        ("a fox) b]", plain("a fox) b]")),
        ("fox:1.3)", plain("fox:1.3)")),
        ("[fox:1.3]", [("fox:1.3", 1 / 1.1)]),
        ("(fox:1.2.3)", [("fox:1.2.3", 1.1)]),
        ("(fox:)", [("fox:", 1.1)]),
        ("a BREAK b", [("a", 1.0), BREAK, ("b", 1.0)]),
        ("(a BREAK b:1.5)", [("a", 1.5), BREAK, ("b", 1.5)]),
        ("a BREAK BREAK b", [("a", 1.0), BREAK, BREAK, ("b", 1.0)]),
        ("BREAKFAST, a break", plain("BREAKFAST, a break")),
    ],
)
def test_weights_are_read_as_automatic1111_reads_them(prompt: str, expected: list[tuple[str, float]]) -> None:
    found = parse_weights(prompt)
    assert [text for text, _ in found] == [text for text, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_of_a_plain_prompt_are_the_references(prompt: str, vocabulary: Path, tokenizer: PromptTokenizer) -> None:
    found = tokenizer.encode(prompt, weights=False)
    expected = reference_ids(reference(vocabulary), prompt)
    assert found.ids.dtype == np.int64
    assert found.weights.dtype == np.float32
    np.testing.assert_array_equal(found.ids, expected)
    assert (found.weights == 1).all()


def test_ids_of_random_unicode_are_the_references(vocabulary: Path, tokenizer: PromptTokenizer) -> None:
    rng = np.random.default_rng(0)
    clip = reference(vocabulary)
    for _ in range(200):
        points = rng.choice([rng.integers(32, 127), rng.integers(160, 0xD800), rng.integers(0xE000, 0x2FFFF)], 12)
        prompt = "".join(chr(point) for point in points)
        expected = clip(prompt, add_special_tokens=False).input_ids
        found = tokenizer.encode(prompt, weights=False).ids.reshape(-1)
        assert found[(found != BOS) & (found != EOS)].tolist() == [i for i in expected if i != EOS], repr(prompt)


def test_weight_syntax_leaves_the_plain_text_its_ids(tokenizer: PromptTokenizer) -> None:
    plain_ids = tokenizer.encode("a red fox in the snow").ids
    weighed = tokenizer.encode("a (red:1.5) fox [in the snow]")
    np.testing.assert_array_equal(weighed.ids, plain_ids)
    expected = [1, 1, 1.5, 1, *[1 / 1.1] * 3, 1]
    np.testing.assert_allclose(weighed.weights[0, :8], expected, rtol=1e-6)
    assert (weighed.weights[0, 8:] == 1).all()


def test_75_tokens_are_one_chunk_and_76_are_two(vocabulary: Path, tokenizer: PromptTokenizer) -> None:
    full = "fox " * 75
    np.testing.assert_array_equal(tokenizer.encode(full).ids, reference_ids(reference(vocabulary), full))
    longer = tokenizer.encode(full + "cat")
    assert longer.ids.shape == longer.weights.shape == (2, 77)
    np.testing.assert_array_equal(longer.ids[:1], tokenizer.encode(full).ids)
    np.testing.assert_array_equal(longer.ids[1:], tokenizer.encode("cat").ids)


def test_a_long_prompt_loses_nothing(vocabulary: Path, tokenizer: PromptTokenizer) -> None:
    prompt = ", ".join(PROMPTS[2:10]) * 3
    ids = tokenizer.encode(prompt, weights=False).ids
    body = ids[:, 1:-1].reshape(-1)
    assert (ids[:, 0] == BOS).all()
    assert (ids[:, -1] == EOS).all()
    assert len(ids) > 2
    expected = reference(vocabulary)(prompt, add_special_tokens=False).input_ids
    assert body[: len(expected)].tolist() == expected
    assert (body[len(expected) :] == EOS).all()


def test_break_starts_a_chunk(tokenizer: PromptTokenizer) -> None:
    found = tokenizer.encode("a fox BREAK (a cat:1.2) BREAK")
    np.testing.assert_array_equal(found.ids[0], tokenizer.encode("a fox").ids[0])
    np.testing.assert_array_equal(found.ids[1], tokenizer.encode("a cat").ids[0])
    assert len(found.ids) == 2
    assert len(tokenizer.encode("fox " * 75 + "BREAK cat").ids) == 2
    assert len(tokenizer.encode("a fox BREAK a cat", weights=False).ids) == 1


def test_prompts_get_equal_numbers_of_chunks(tokenizer: PromptTokenizer) -> None:
    long, short = tokenizer.encode("fox " * 200), tokenizer.encode("(blurry:1.4)")
    a, b = (fill_chunks(one, len(long.ids), tokenizer) for one in (long, short))
    assert a is long
    assert b.ids.shape == b.weights.shape == (3, 77)
    np.testing.assert_array_equal(b.ids[:1], short.ids)
    np.testing.assert_array_equal(b.ids[1:], np.repeat(tokenizer.encode("").ids, 2, axis=0))
    assert (b.weights[1:] == 1).all()


@pytest.mark.parametrize(
    ("files", "pad"),
    [
        # Stable Diffusion 1: older files, every token a mapping
        (
            {
                "tokenizer_config": {
                    "tokenizer_class": "CLIPTokenizer",
                    "model_max_length": 77,
                    "pad_token": "<|endoftext|>",
                    "bos_token": {"__type": "AddedToken", "content": "<|startoftext|>", "normalized": True},
                    "eos_token": {"__type": "AddedToken", "content": "<|endoftext|>", "normalized": True},
                },
                "special_tokens_map": {"pad_token": "<|endoftext|>"},
            },
            EOS,
        ),
        # Stable Diffusion 2: the map wins over the config
        (
            {
                "tokenizer_config": {"model_max_length": 77, "pad_token": "<|endoftext|>"},
                "special_tokens_map": {"pad_token": "!"},
            },
            0,
        ),
        # SDXL's second tokenizer as saved today: the config knows it all, the map is stale
        (
            {
                "tokenizer_config": {
                    "model_max_length": 77,
                    "pad_token": "!",
                    "added_tokens_decoder": {
                        "0": {"content": "!", "special": True, "normalized": False},
                        "49406": {"content": "<|startoftext|>", "special": True, "normalized": True},
                        "49407": {"content": "<|endoftext|>", "special": True, "normalized": False},
                    },
                },
                "special_tokens_map": {"pad_token": "<|endoftext|>"},
            },
            0,
        ),
        # textual inversion: a token of its own
        ({"tokenizer_config": {"model_max_length": 77}, "added_tokens": {"<my-cat>": 49408}}, EOS),
    ],
    ids=["sd1", "sd2", "sdxl", "inversion"],
)
def test_folders_of_every_age_are_read_as_transformers_reads_them(
    files: dict[str, Any], pad: int, folder_with: Callable[..., Path]
) -> None:
    folder = folder_with(**files)
    opened = PromptTokenizer.from_folder(folder)
    clip = reference(folder)
    assert opened.max_length == 77
    assert (opened.bos, opened.eos, opened.pad) == (BOS, EOS, pad)
    for prompt in [*PROMPTS, "wow! a <my-cat> on <MY-CAT>!!", "<|ENDOFTEXT|> <|StartOfText|>"]:
        np.testing.assert_array_equal(opened.encode(prompt, weights=False).ids, reference_ids(clip, prompt), prompt)


def test_a_written_tokenizer_json_stands_alone(
    vocabulary: Path, tokenizer: PromptTokenizer, tmp_path: Path, folder_with: Callable[..., Path]
) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    target = tmp_path / "tokenizer.json"
    write_tokenizer_json(vocabulary, target)
    alone = PromptTokenizer(target, 77, BOS, EOS, EOS)
    again = PromptTokenizer.from_folder(tmp_path, max_length=77)
    direct = tokenizers.Tokenizer.from_file(str(target))
    clip = reference(vocabulary)
    for prompt in PROMPTS:
        expected = tokenizer.encode(prompt).ids
        np.testing.assert_array_equal(alone.encode(prompt).ids, expected)
        np.testing.assert_array_equal(again.encode(prompt).ids, expected)
        assert direct.encode(prompt).ids == clip(prompt).input_ids  # bos and eos come from its template


def test_transformers_own_tokenizer_json_opens(vocabulary: Path, tokenizer: PromptTokenizer, tmp_path: Path) -> None:
    clip = reference(vocabulary)
    clip.model_max_length = 77
    clip("a fox", truncation=True, padding="max_length", max_length=5)  # leaves both switched on in what is saved
    clip.save_pretrained(tmp_path)
    opened = PromptTokenizer.from_folder(tmp_path)
    for prompt in [*PROMPTS, "fox " * 100]:
        np.testing.assert_array_equal(opened.encode(prompt).ids, tokenizer.encode(prompt).ids)


def test_a_tokenizer_without_bos(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "fox": 3}, "<pad>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "T5Tokenizer", "eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 4}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    opened = PromptTokenizer.from_folder(tmp_path)
    assert opened.bos is None
    assert opened.encode("a fox").ids.tolist() == [[2, 3, 1, 0]]
    assert opened.encode("a fox a fox").ids.tolist() == [[2, 3, 2, 1], [3, 1, 0, 0]]


def test_weights_of_one_keep_every_bit() -> None:
    hidden = np.random.default_rng(1).standard_normal((2, 77, 16)).astype(np.float32)
    weights = np.ones((2, 77), np.float32)
    np.testing.assert_array_equal(apply_weights(hidden, weights), hidden)
    weights[1, 3] = 1.3
    found = apply_weights(hidden, weights)
    np.testing.assert_array_equal(found[0], hidden[0])
    assert (found[1] != hidden[1]).any()


def test_weights_multiply_and_keep_the_mean() -> None:
    hidden = np.random.default_rng(2).standard_normal((2, 77, 16)).astype(np.float32) + 0.2
    weights = np.ones((2, 77), np.float32)
    weights[0, 5], weights[1, 7] = 1.5, 0.25
    found = apply_weights(hidden, weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(axis=(1, 2)), hidden.mean(axis=(1, 2)), rtol=1e-5)
    for chunk, token in ((0, 5), (1, 7)):
        others = found[chunk, 1] / hidden[chunk, 1]
        weighed = found[chunk, token] / hidden[chunk, token]
        np.testing.assert_allclose(weighed / others, weights[chunk, token], rtol=1e-5)
    assert np.isfinite(apply_weights(hidden, np.zeros_like(weights))).all()


def test_chunks_join_along_the_tokens() -> None:
    hidden = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    joined = join_chunks(hidden)
    assert joined.shape == (1, 6, 4)
    np.testing.assert_array_equal(joined[0, 3:], hidden[1])


def test_bad_prompts_say_so(tokenizer: PromptTokenizer) -> None:
    with pytest.raises(BadInput, match=r"not valid Unicode \(position 2\)"):
        tokenizer.encode("a \udc80 fox")
    with pytest.raises(BadInput, match=r"too large.*Use weights near 1"):
        tokenizer.encode(f"(fox:{'9' * 60})")
    with pytest.raises(BadInput, match="too large"):
        tokenizer.encode("(" * 9000 + "fox")


def test_bad_folders_say_so(vocabulary: Path, tmp_path: Path, folder_with: Callable[..., Path]) -> None:
    with pytest.raises(BadInput, match=r"has neither tokenizer\.json nor"):
        PromptTokenizer.from_folder(tmp_path)
    with pytest.raises(BadInput, match=r"no usable model_max_length.*CLIP: 77"):
        PromptTokenizer.from_folder(folder_with(tokenizer_config={"model_max_length": int(1e30)}))
    with pytest.raises(BadInput, match="no eos_token or pad_token"):
        PromptTokenizer.from_folder(folder_with(tokenizer_config={"model_max_length": 77, "pad_token": None}))
    with pytest.raises(BadInput, match="no room for text"):
        PromptTokenizer.from_folder(vocabulary, max_length=2)
    with pytest.raises(DiskError, match="could not be written"):
        write_tokenizer_json(vocabulary, tmp_path / "absent" / "tokenizer.json")
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json"):
        damaged = folder_with(tokenizer_config={"model_max_length": 77})
        (damaged / name).write_text('{"half')
        with pytest.raises(BadInput, match=f"{re.escape(name)} (cannot be read|is not readable JSON)"):
            PromptTokenizer.from_folder(damaged)
    lacking = folder_with(tokenizer_config={"model_max_length": 77})
    (lacking / "vocab.json").write_text('{"<|endoftext|>": 0}')
    (lacking / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(BadInput, match=r"lacks <\|startoftext\|>"):
        PromptTokenizer.from_folder(lacking)
