"""The second fine-tune's merge."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from vitrify.core.errors import BadInput
from vitrify.demo.run import MODELS
from vitrify.demo.swap import CHANGES, UNET, merge_model, merge_tensors

MODEL = MODELS / "emoji-diffusion"


def test_only_the_named_tensors_differ(tmp_path):
    merged = merge_model(MODEL, tmp_path / "night")
    before, after = load_file(MODEL / UNET), load_file(tmp_path / "night" / UNET)
    changes = load_file(MODEL / CHANGES)
    assert before.keys() == after.keys()
    assert merged.changed == len(changes) < merged.tensors == len(before)
    assert merged.bytes == (MODEL / CHANGES).stat().st_size
    for name, tensor in after.items():
        expected = changes.get(name, before[name])
        assert tensor.dtype == expected.dtype
        np.testing.assert_array_equal(tensor, expected)
    assert any(not np.array_equal(before[n], changes[n]) for n in changes)


def test_the_rest_of_the_pipeline_is_carried_over(tmp_path):
    merge_model(MODEL, tmp_path / "night")
    inner = {p.relative_to(MODEL) for p in MODEL.rglob("*") if p.is_file() and p.name != CHANGES}
    assert {p.relative_to(tmp_path / "night") for p in (tmp_path / "night").rglob("*") if p.is_file()} == inner
    for path in inner - {UNET}:
        assert (tmp_path / "night" / path).read_bytes() == (MODEL / path).read_bytes()
    assert not (tmp_path / "night/model_index.json").samefile(MODEL / "model_index.json")
    assert json.loads((tmp_path / "night/model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"


def test_a_merged_file_says_whose_layout_it_has(tmp_path):
    merge_model(MODEL, tmp_path / "night")
    with safe_open(tmp_path / "night" / UNET, "numpy") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "value", "have"),
    [
        ("b", np.zeros(2, np.float16), "no such tensor"),
        ("a", np.zeros(3, np.float16), r"float16 \[2\]"),
        ("a", np.zeros(2, np.float32), r"float16 \[2\]"),
    ],
)
def test_changes_that_do_not_fit_are_refused(tmp_path, name, value, have):
    save_file({"a": np.zeros(2, np.float16)}, tmp_path / "base.safetensors")
    save_file({name: value}, tmp_path / "changes.safetensors")
    with pytest.raises(BadInput, match=have):
        merge_tensors(tmp_path / "base.safetensors", tmp_path / "changes.safetensors", tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()
