"""Which recipe runs where is known before any work starts; a no says why and what to do."""

from __future__ import annotations

import pytest

from vitrify.core.errors import UsageError
from vitrify.quant import support
from vitrify.quant.recipes import RECIPES, recipe

PIPELINE = ("text_encoder", "unet", "vae_decoder", "vae_encoder")


def test_the_matrix_answers_for_every_recipe_on_every_target() -> None:
    cells = support.matrix()
    assert len(cells) == len({(c.recipe, c.target) for c in cells}) == len(RECIPES) * len(support.TARGETS)
    for cell in cells:
        assert bool(cell.why) != cell.runs
        assert bool(cell.buys) == cell.runs


def test_check_refuses_what_the_matrix_refuses_and_nothing_else() -> None:
    for cell in support.matrix():
        if (cell.recipe, cell.target) == ("fp32", "onnx"):
            continue  # it runs, and is what there is already
        if cell.runs:
            support.check(recipe(cell.recipe), cell.target, [*PIPELINE, "model"])
            continue
        with pytest.raises(UsageError) as caught:
            support.check(recipe(cell.recipe), cell.target, [*PIPELINE, "model"])
        assert cell.recipe in caught.value.what
        assert cell.target in caught.value.what
        assert caught.value.fix[0].isupper()
        assert caught.value.fix.endswith(".")


@pytest.mark.parametrize(
    ("id", "target", "components", "what", "fix"),
    [
        ("fp32", "onnx", PIPELINE, "what it is made from", "--to or --quant"),
        (
            "fp32",
            "coreml",
            PIPELINE,
            "no target 'coreml'",
            "onnx, openvino, torch, aotinductor, tensorrt-rtx, tensorrt",
        ),
        ("nf4-weights", "onnx", PIPELINE, "no nf4 type", "int4-weights"),
        ("fp8", "onnx", PIPELINE, "computes with no float8", "int8-weights"),
        ("fp8", "openvino", PIPELINE, "no float8 on a CPU", "int8-weights"),
        ("fp8", "torch", PIPELINE, "over int8 weights", "int8-weights"),
        ("int8-dynamic", "openvino", PIPELINE, "its own way", "int8-static"),
        ("int4-weights:symmetric=no", "tensorrt-rtx", PIPELINE, "no zero points", "symmetric=no"),
        ("int8-hybrid:symmetric=no", "tensorrt", PIPELINE, "no zero points", "symmetric=no"),
        ("int8-static", "onnx", ("vae_decoder",), "is for unet, transformer, model", "another recipe"),
    ],
)
def test_a_combination_that_cannot_run_says_why(
    id: str, target: str, components: tuple[str, ...], what: str, fix: str
) -> None:
    with pytest.raises(UsageError) as caught:
        support.check(recipe(id), target, components)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_a_recipe_that_leaves_the_denoiser_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "cpu_info", list)
    (said,) = support.check(recipe("int8-dynamic"), "onnx", PIPELINE)
    assert said.startswith("int8-dynamic leaves unet as it is")
    assert "int8-static" in said
    assert "nf4-weights" not in said, "which does not run there"
    assert support.check(recipe("int8-weights"), "onnx", PIPELINE) == []
    assert support.check(recipe("int8-dynamic"), "onnx", ["model"]) == []


@pytest.mark.parametrize("flags", [[("flags", "sse avx2 fma")], [("Features", "fp asimd")]])
def test_int8_without_dot_products_is_warned_of(monkeypatch: pytest.MonkeyPatch, flags: list[tuple[str, str]]) -> None:
    monkeypatch.setattr(support, "cpu_info", lambda: flags)
    for id in ("int8-static", "int8-dynamic", "int8-hybrid"):
        (said,) = support.slower_here(recipe(id), "onnx")
        assert "VNNI" in said
        assert id in said
    assert support.slower_here(recipe("int8-weights"), "onnx") == [], "its activations are float"
    assert support.slower_here(recipe("int8-static"), "tensorrt-rtx") == [], "the processor does not compute it"


@pytest.mark.parametrize("flags", [[("flags", "avx2 avx512_vnni")], [("flags", "avx2"), ("flags", "avx_vnni")], []])
def test_a_processor_that_has_them_or_does_not_say_is_not(
    monkeypatch: pytest.MonkeyPatch, flags: list[tuple[str, str]]
) -> None:
    monkeypatch.setattr(support, "cpu_info", lambda: flags)
    for target in ("onnx", "openvino"):
        assert support.slower_here(recipe("int8-static"), target) == []
