"""What the exporter must get right for T5: one embedding under two names, positions of any distance, its tokenizer."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.errors import BadInput, MissingDependency
from vitrify.export.families.t5 import t5_encoder

torch = pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")
transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")

SPEC = t5_encoder("text_encoder_2")
T5 = {
    "model_type": "t5", "vocab_size": 100, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
    "feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new", "layer_norm_epsilon": 1e-6,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "eos_token_id": 1, "pad_token_id": 0,
    "decoder_start_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight")


@pytest.fixture(scope="module")
def graph() -> Any:
    from vitrify.export.graph import graph_from_module

    return graph_from_module(SPEC, T5)


def test_the_twin_computes_what_its_module_does(graph: Any) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    from vitrify.export.graph import operators
    from vitrify.export.twin import prove_graph

    proof = prove_graph(SPEC, T5, operators(graph))
    assert proof["relative"] < 2e-5
    assert max(sizes["tokens"] for sizes in proof["shapes"]) > T5["relative_attention_max_distance"]


def test_the_tied_embedding_is_one_weight(graph: Any) -> None:
    wide = [n for n, v in graph.graph.initializers.items() if tuple(v.shape) == (100, 32)]
    assert len(wide) == 1
    assert wide[0] in EMBEDDINGS


@pytest.mark.parametrize("kept", [EMBEDDINGS, EMBEDDINGS[:1], EMBEDDINGS[1:]])
def test_a_file_may_hold_the_embedding_under_either_name(kept: tuple[str, ...], tmp_path: Path, graph: Any) -> None:
    from safetensors.torch import save_file

    from vitrify.core.safetensors_header import open_checkpoint
    from vitrify.export.names import bind_module
    from vitrify.export.twin import random_module

    module = random_module(SPEC, T5)
    state = {n: t.clone() for n, t in module.state_dict().items() if n not in EMBEDDINGS}
    state |= {name: module.get_input_embeddings().weight.detach().clone() for name in kept}
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    bound = bind_module(module, open_checkpoint(tmp_path, ("model",))).linked
    assert {bound[name].name for name in EMBEDDINGS} <= set(kept)
    weights = [n for n, v in graph.graph.initializers.items() if getattr(v.const_value, "location", "") == "weights"]
    assert set(weights) <= set(bound)


def test_a_sentencepiece_model_alone_becomes_a_tokenizer(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="trains and converts a SentencePiece model")
    pytest.importorskip("google.protobuf", reason="transformers reads it with that")
    from vitrify.export.spiece import SPIECE, tokenizer_json_from_spiece
    from vitrify.pipelines.prompt import PromptTokenizer

    texts = iter(["a red apple on a table", "a blue car", "a green car, blurry and dark"] * 10)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_prefix=str(tmp_path / "spiece"), vocab_size=40, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    settings(tmp_path)
    tokenizer_json_from_spiece(tmp_path, tmp_path / "tokenizer.json")
    expected = sentencepiece.SentencePieceProcessor(str(tmp_path / SPIECE)).encode("a red apple, and a car")
    ids = PromptTokenizer.from_folder(tmp_path, max_length=24).encode("a red apple, and a car").ids
    np.testing.assert_array_equal(ids, [[*expected, 1, *[0] * (23 - len(expected))]])


def test_a_sentencepiece_model_that_cannot_be_converted_is_told(tmp_path: Path) -> None:
    from vitrify.export.spiece import SPIECE, tokenizer_json_from_spiece

    (tmp_path / SPIECE).write_bytes(b"junk")
    settings(tmp_path)
    there = importlib.util.find_spec("sentencepiece") is not None
    with pytest.raises(BadInput if there else MissingDependency, match="no tokenizer") as raised:
        tokenizer_json_from_spiece(tmp_path, tmp_path / "tokenizer.json")
    assert "tokenizer.json" in raised.value.fix
    assert not (tmp_path / "tokenizer.json").exists()


def settings(folder: Path) -> None:
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 512, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
