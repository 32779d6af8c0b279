"""Recipes are data: an id rebuilds each through JSON, and an option that would do nothing is refused."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from vitrify.core.errors import UsageError
from vitrify.quant.recipes import GROUPS, RECIPES, SENSITIVE, Recipe, recipe

OPTIONED = {
    "int8-weights:group=64": {"group": 64},
    "int8-weights:symmetric=no": {"symmetric": False},
    "int4-weights:group=32": {"group": 32},
    "int4-weights:group=16,symmetric=no,convs=int8": {"group": 16, "symmetric": False, "convs": "int8"},
    "int4-weights:keep=mid_block.*": {"keep": ("mid_block.*",)},
    "int4-weights:keep=false_start+true_end": {"keep": ("false_start", "true_end")},
    "nf4-weights:group=128": {"group": 128},
    "fp8:keep=fc1": {"keep": ("fc1",)},
    "int8-dynamic:keep=fc1": {"keep": ("fc1",)},
    "int8-static:keep=a+b,samples=8,smooth=0.5": {"keep": ("a", "b"), "samples": 8, "smooth": 0.5},
    "int8-hybrid:group=32,samples=12": {"group": 32, "samples": 12},
}


@pytest.mark.parametrize("id", [*RECIPES, *OPTIONED])
def test_an_id_rebuilds_its_recipe_through_json(id: str) -> None:
    made = recipe(id)
    stored = json.loads(json.dumps(made.to_json()))
    assert stored == {"recipe": id, "weights": made.weights, "activations": made.activations}
    assert recipe(stored["recipe"]) == made


@pytest.mark.parametrize("id", OPTIONED)
def test_options_change_what_they_say_and_nothing_else(id: str) -> None:
    made, base = recipe(id), RECIPES[id.partition(":")[0]]
    changed = {f.name for f in fields(Recipe) if getattr(made, f.name) != getattr(base, f.name)}
    assert changed == {"id", *OPTIONED[id]}
    assert {k: getattr(made, k) for k in OPTIONED[id]} == OPTIONED[id]
    assert made.name == base.id


@pytest.mark.parametrize(
    ("given", "canonical"),
    [
        ("int4-weights:", "int4-weights"),
        ("int4-weights:group=64", "int4-weights"),
        ("int8-weights:symmetric=yes", "int8-weights"),
        ("int8-weights:symmetric=false", "int8-weights:symmetric=no"),
        ("int4-weights:convs=int8,group=32", "int4-weights:group=32,convs=int8"),
        ("int8-static:keep=b a+b", "int8-static:keep=a+b"),
        ("int8-static:samples=064", "int8-static"),
    ],
)
def test_one_recipe_has_one_id(given: str, canonical: str) -> None:
    assert recipe(given).id == canonical
    assert recipe(given) == recipe(canonical)


@pytest.mark.parametrize(
    ("id", "what", "fix"),
    [
        ("int3-weights", "no recipe 'int3-weights'", "fp32, int8-weights"),
        ("", "no recipe ''", "fp32"),
        ("int4-weights:groups=32", "'groups=32' is no option", "group"),
        ("int4-weights:group", "'group' is no option", "group=32"),
        ("int4-weights:group=33", "group of 33", "16, 32, 64, 128, 256"),
        ("int4-weights:group=0", "group of 0", "16, 32"),
        ("nf4-weights:group=0", "group of 0", "16, 32"),
        ("int4-weights:group=many", "group is 'many'", "group=64"),
        ("int8-weights:group=-32", "group is -32", "larger"),
        ("int4-weights:symmetric=maybe", "symmetric is 'maybe'", "symmetric=no"),
        ("int4-weights:convs=int2", "convs is 'int2'", "convs=int8"),
        ("int8-static:samples=0", "samples is 0", "larger"),
        ("int8-static:smooth=nan", "smooth is nan", "0 to 1"),
        ("int8-static:smooth=1.5", "smooth is 1.5", "0 to 1"),
        ("int8-static:smooth=-1", "smooth is -1", "larger"),
        # what would change nothing
        ("fp32:keep=conv_in", "fp32 has no option keep", "none"),
        ("int8-weights:samples=3", "int8-weights has no option samples", "group, symmetric, keep"),
        ("int8-weights:convs=int4", "int8-weights has no option convs", "group"),
        ("nf4-weights:symmetric=no", "nf4-weights has no option symmetric", "group, keep"),
        ("int8-dynamic:symmetric=no", "int8-dynamic has no option symmetric", "keep"),
        ("int8-static:group=32", "int8-static has no option group", "keep, samples, smooth"),
    ],
)
def test_what_is_no_recipe_is_refused(id: str, what: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(id)
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_sensitive_layers_and_those_that_match_a_pattern_are_kept() -> None:
    plain, asked = recipe("int4-weights"), recipe("int4-weights:keep=mid_block.*.to_q+fc1")
    for part in SENSITIVE:
        assert plain.kept(f"some.{part}.linear_1"), part
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert not plain.kept(layer)
    assert asked.kept(layer)
    assert asked.kept("text_model.encoder.layers.0.mlp.fc1")
    assert not asked.kept("mid_block.attentions.0.transformer_blocks.0.attn1.to_k")
    assert not asked.kept("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")


def test_a_vae_keeps_its_precision_and_only_calibrated_recipes_want_samples() -> None:
    for made in RECIPES.values():
        assert not made.applies_to("vae_decoder")
        assert not made.applies_to("vae_encoder")
        assert made.lossless == (made.id == "fp32")
        assert made.lossless != made.applies_to("model")
        assert made.calibrated == bool(made.samples)
        assert made.group in (0, *GROUPS)
        assert made.buys
