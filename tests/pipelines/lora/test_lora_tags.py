"""LoRAs named in a prompt, and the files that have those names."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitrify.core.errors import BadInput
from vitrify.pipelines.lora import find_lora, split_loras


@pytest.mark.parametrize(
    ("prompt", "rest", "loras"),
    [
        ("a castle", "a castle", []),
        (" a  castle ", " a  castle ", []),
        ("a castle <lora:ink:0.8>", "a castle", [("ink", 0.8, 0.8)]),
        ("a castle <lora:ink:0.8>, at dusk", "a castle, at dusk", [("ink", 0.8, 0.8)]),
        ("<lora:ink> a castle", "a castle", [("ink", 1.0, 1.0)]),
        ("a <lora:a b:.5:0> (castle:1.2) <lora: c.d :-1e-1>", "a (castle:1.2)", [("a b", 0, 0.5), ("c.d", -0.1, -0.1)]),
        ("a <lora:ink:1><lora:ink:1>", "a", [("ink", 1, 1), ("ink", 1, 1)]),
        ("a < b: c > d", "a < b: c > d", []),
        ("a <castle>", "a <castle>", []),
    ],
)
def test_tags_leave_the_prompt(prompt: str, rest: str, loras: list[tuple[str, float, float]]) -> None:
    assert split_loras(prompt) == (rest, loras)


@pytest.mark.parametrize("tag", ["<lora:>", "<lora::0.8>", "<lora:ink:1:2:3>"])
def test_a_tag_of_another_form_is_named(tag: str) -> None:
    with pytest.raises(BadInput, match=f"^{tag} in the prompt names no LoRA and at most two strengths") as caught:
        split_loras(f"a castle {tag}")
    assert "<lora:NAME:0.8>" in caught.value.fix


@pytest.mark.parametrize("strength", ["much", "", "nan", "inf", "0,8", "1:x"])
def test_a_strength_that_is_no_number_is_named(strength: str) -> None:
    with pytest.raises(BadInput, match="which is no number"):
        split_loras(f"a castle <lora:ink:{strength}>")


def test_names_in_a_table(tmp_path: Path) -> None:
    table = {"ink": tmp_path / "x.safetensors"}
    assert find_lora("ink", table) == tmp_path / "x.safetensors"
    with pytest.raises(BadInput, match=r"no LoRA 'oil'\. LoRAs are ink"):
        find_lora("oil", table)


def test_names_in_a_folder(tmp_path: Path) -> None:
    for name in ("ink.safetensors", "v1.5.safetensors", "deep/oil.safetensors", "deep/ink.safetensors", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_lora("oil", tmp_path) == tmp_path / "deep/oil.safetensors"
    assert find_lora("v1.5", tmp_path) == tmp_path / "v1.5.safetensors"
    assert find_lora("deep/ink", tmp_path) == find_lora("deep/ink.safetensors", tmp_path)
    assert find_lora("deep/ink", tmp_path) == tmp_path / "deep/ink.safetensors"
    with pytest.raises(BadInput, match=r"several LoRAs 'ink' in .*deep/ink\.safetensors and ink\.safetensors"):
        find_lora("ink", tmp_path)
    with pytest.raises(BadInput, match=r"no LoRA 'notes'.*has ink, ink, oil, v1\.5"):
        find_lora("notes", tmp_path)
    for outside in ("../x", str(tmp_path / "ink"), ""):
        with pytest.raises(BadInput, match="no LoRA"):
            find_lora(outside, tmp_path / "deep")
