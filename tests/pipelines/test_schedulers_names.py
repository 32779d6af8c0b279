"""One table of names: ours, the web UI's, diffusers' classes; and what a model's options ask for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import diffusers
import pytest

from vitrify.core.errors import BadInput
from vitrify.pipelines.schedulers import (
    EXCHANGEABLE_CLASSES,
    NAMES_OF_CLASSES,
    SCHEDULERS,
    own_name,
    scheduler_from_config,
    scheduler_name,
    scheduler_names,
    with_karras,
)

from .scheduler_walk import NOISE, SD15_PNDM, SDXL_EULER, config_of

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
SPRINT = {"_class_name": "SCMScheduler", "prediction_type": "trigflow", "sigma_data": 0.5}
DPM = {"_class_name": "DPMSolverMultistepScheduler", **NOISE}
DOCS = Path(__file__).parents[2] / "docs/schedulers.md"


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_is_made_under_its_own_name(name: str) -> None:
    config = next(one for one in (SD15_PNDM, FLOW, SPRINT) if name in scheduler_names(one))
    made = scheduler_from_config(config, name)
    assert made.name == name
    assert made.order == getattr(diffusers, SCHEDULERS[name].diffusers).order


@pytest.mark.parametrize("name", SCHEDULERS)
def test_each_is_found_by_the_web_uis_name_in_any_case(name: str) -> None:
    row = SCHEDULERS[name]
    for text in (name, row.label, *row.others):
        for spelled in (text, text.upper(), text.lower(), f" {text} ", text.replace(" ", "_"), text.replace("_", "-")):
            assert scheduler_name(spelled) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m_karras"),
        ("Euler a", "euler_a"),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde_karras"),
        ("DPM++ SDE", "dpmpp_sde"),
        ("DPM2 a", "dpm2_a"),
        ("PLMS", "pndm"),
        ("k_euler_ancestral", "euler_a"),
        ("EulerDiscreteScheduler", "euler"),
        ("eulerancestraldiscretescheduler", "euler_a"),
        ("KDPM2AncestralDiscreteScheduler", "dpm2_a"),
        ("FlowMatchEulerDiscreteScheduler", "flow_euler"),
    ],
)
def test_names_of_others(text: str, name: str) -> None:
    assert scheduler_name(text) == name
    config = FLOW if name == "flow_euler" else SD15_PNDM
    assert scheduler_from_config(config, text).name == name


def test_no_two_schedulers_share_a_name() -> None:
    texts = [text.lower() for name, row in SCHEDULERS.items() for text in {name, row.label.lower(), *row.others}]
    assert len(texts) == len(set(texts))


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("eulr", "euler"),
        ("DPM++ 2M Karas", "dpmpp_2m_karras"),
        ("EulerDiscretScheduler", "euler"),
        ("HeunDiscrete", "heun"),
        ("dpm2a", "dpm2_a"),
    ],
)
def test_an_unknown_name_says_the_nearest_one(text: str, near: str) -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config(SD15_PNDM, text)
    assert wrong.value.what == f"There is no scheduler {text!r}."
    assert wrong.value.fix == f"Did you mean {near}? Choose one of: {', '.join(SCHEDULERS)}."


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_name("zzzz")
    assert wrong.value.fix == f"Choose one of: {', '.join(SCHEDULERS)}."


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (SD15_PNDM, "pndm"),
        (SDXL_EULER, "euler"),
        ({**SDXL_EULER, "use_karras_sigmas": True}, "euler_karras"),
        (DPM, "dpmpp_2m"),
        ({**DPM, "use_karras_sigmas": True}, "dpmpp_2m_karras"),
        ({**DPM, "algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
        ({**DPM, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}, "dpmpp_2m_sde_karras"),
        ({"_class_name": "DDIMScheduler", "use_karras_sigmas": True}, "ddim"),
        (FLOW, "flow_euler"),
        *((config_of(name), name) for name in NAMES_OF_CLASSES.values()),
    ],
)
def test_what_a_models_options_ask_for(config: dict[str, Any], name: str) -> None:
    assert own_name(config) == name
    assert scheduler_from_config(config).name == name


def test_a_class_of_diffusers_leaves_the_rest_to_the_models_options() -> None:
    config = {**DPM, "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}
    assert scheduler_from_config(config, "DPMSolverMultistepScheduler").name == "dpmpp_2m_sde_karras"
    assert scheduler_from_config(config, "EulerDiscreteScheduler").name == "euler_karras"
    assert scheduler_from_config(config, "DDIMScheduler").name == "ddim"


def test_karras() -> None:
    assert with_karras("dpmpp_2m") == with_karras("dpmpp_2m_karras") == "dpmpp_2m_karras"
    assert with_karras("ddim") == "ddim"


@pytest.mark.parametrize(
    ("config", "name", "expected"),
    [
        (SD15_PNDM, "restart", "'restart'"),
        ({"_class_name": "DDPMScheduler"}, None, "'DDPMScheduler'"),
        ({"_class_name": "VQScheduler"}, "euler", "none of ours can stand in"),
        ({"_class_name": "FlowMatchLCMScheduler"}, "flow_euler", "none of ours can stand in"),
        ({"_class_name": ["x"]}, "euler", "['x']"),
        (NOISE, None, "_class_name"),
    ],
)
def test_unknown_classes_and_names_are_refused(config: dict[str, Any], name: str | None, expected: str) -> None:
    with pytest.raises(BadInput) as wrong:
        scheduler_from_config(config, name)
    assert expected in wrong.value.what
    assert "Scheduler" in wrong.value.fix or "dpmpp_2m_karras" in wrong.value.fix


@pytest.mark.parametrize("source", EXCHANGEABLE_CLASSES)
def test_a_class_that_we_do_not_have_lends_its_options(source: str) -> None:
    assert own_name({"_class_name": source}) is None
    assert scheduler_from_config({"_class_name": source, **NOISE}, "heun").name == "heun"
    assert hasattr(diffusers, source)


def test_the_documentation_lists_them_all() -> None:
    rows = re.findall(r"^\| `(\w+)`(?:, `_karras`)? \| ([^|]+) \| `(\w+)`", DOCS.read_text(), flags=re.MULTILINE)
    bases = {name: row for name, row in SCHEDULERS.items() if not name.endswith("_karras")}
    assert [(name, label.strip(), source) for name, label, source in rows] == [
        (name, row.label, row.diffusers) for name, row in bases.items()
    ]
    with_levels = set(re.findall(r"^\| `(\w+)`, `_karras`", DOCS.read_text(), flags=re.MULTILINE))
    assert with_levels == {name for name in bases if with_karras(name) != name}
