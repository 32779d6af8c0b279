"""Plugins around a generation: the built-in one, and one that another package brings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.errors import BadInput, MissingDependency, UsageError
from vitrify.pipelines.diffusion import DiffusionPipeline
from vitrify.pipelines.generation import Generation
from vitrify.pipelines.hooks import hook_names, hooks_of

PLUGIN = """
from dataclasses import replace
from PIL import ImageOps
from vitrify.pipelines.hooks import Hook

class Mirror(Hook):
    options = {"times": "how strong"}

    def before(self, request):
        return replace(request, negative_prompt="a green leaf")

    def step(self, step):
        return step.latents * float(self.given.get("times", 1)) if step.number == 1 else None

    def after(self, result):
        return replace(result, images=[ImageOps.mirror(one) for one in result.images])
"""


@pytest.fixture(scope="module")
def pipeline(diffusion_artifact: Path) -> Iterator[DiffusionPipeline]:
    opened = vitrify.load(diffusion_artifact, "cpu")
    yield opened
    opened.close()


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point, as pip would install it."""
    (tmp_path / "mirror_plugin.py").write_text(PLUGIN)
    info = tmp_path / "mirror_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mirror-plugin\nVersion: 1.0\n")
    entries = "mirror = mirror_plugin:Mirror\nbroken = mirror_plugin_two:Nothing\nwildcards = mirror_plugin:Mirror\n"
    (info / "entry_points.txt").write_text(f"[vitrify.hooks]\n{entries}")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def words(tmp_path: Path) -> Path:
    folder = tmp_path / "words"
    (folder / "fruit").mkdir(parents=True)
    (folder / "colour.txt").write_text("# of fruit\nred\ngreen\n\n")
    (folder / "thing.txt").write_text("a __colour__ apple\n")
    (folder / "fruit/small.txt").write_text("cherry\n")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "loop.txt").write_text("__loop__\n")
    return folder


def request_of(prompt: str) -> Generation:
    return Generation((prompt,), (0,), "", None, None, 1, 1.0, None, "cpu")


def test_wildcards_fill_blanks_by_the_pictures_seed(pipeline: DiffusionPipeline, words: Path) -> None:
    hooks = hooks_of([f"wildcards:folder={words}"])
    result = pipeline.generate("__thing__, __fruit/small__", steps=1, seed=0, batch=8, hooks=hooks)
    prompts = [one["prompt"] for one in result.parameters]
    assert set(prompts) == {"a red apple, cherry", "a green apple, cherry"}
    beside = hooks[0].before(request_of("__fruit/small__-__fruit/small____fruit/small__"))
    assert beside.prompts == ("cherry-cherrycherry",)
    again = pipeline.generate("__thing__, __fruit/small__", steps=1, seed=3, hooks=hooks)
    assert again.parameters[0]["prompt"] == prompts[3], "the same seed draws the same words"
    assert np.array_equal(np.asarray(again.images[0]), np.asarray(result.images[3]))


@pytest.mark.parametrize(
    ("prompt", "said"), [("__missing__", "has no list"), ("__empty__", "holds no line"), ("__loop__", "do not end")]
)
def test_blanks_that_cannot_be_filled(pipeline: DiffusionPipeline, words: Path, prompt: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        pipeline.generate(prompt, steps=1, hooks=hooks_of([f"wildcards:folder={words}"]))


def test_a_plugin_changes_the_request_each_step_and_the_result(pipeline: DiffusionPipeline, plugin: None) -> None:
    plain = pipeline.generate("a red apple", negative_prompt="a green leaf", steps=4, seed=5)
    seen: list[Any] = []
    result = pipeline.generate("a red apple", steps=4, seed=5, hooks=hooks_of(["mirror"]), on_step=seen.append)
    assert result.parameters[0]["negative_prompt"] == "a green leaf"
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(plain.images[0])[:, ::-1])
    louder: list[Any] = []
    pipeline.generate("a red apple", steps=4, seed=5, hooks=hooks_of(["mirror:times=2"]), on_step=louder.append)
    assert np.array_equal(louder[0].latents, 2 * seen[0].latents), "the step's latents are the hook's"
    assert not np.allclose(louder[1].latents, seen[1].latents), "the next step goes on with them"
    assert "mirror" in hook_names()


def test_a_plugin_adds_a_name_and_never_replaces_one(plugin: None, words: Path) -> None:
    (hook,) = hooks_of([f"wildcards:folder={words}"])
    assert type(hook).__module__ == "vitrify.pipelines.wildcards"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("nothing", UsageError, "no hook 'nothing'"),
        ("wildcards", UsageError, "needs its folder"),
        ("wildcards:folder", UsageError, "no option 'folder'"),
        ("wildcards:colour=red", UsageError, "no option 'colour=red'"),
        ("wildcards:folder=/nowhere", BadInput, "is no folder"),
        ("broken", MissingDependency, "does not import"),
    ],
)
def test_hooks_that_cannot_be_opened(plugin: None, text: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        hooks_of([text])


def test_the_command_takes_hooks(
    diffusion_artifact: Path, words: Path, tmp_path: Path, vitrify: Callable[..., Any]
) -> None:
    hook = f"wildcards:folder={words}"
    done = vitrify(
        "generate", diffusion_artifact, "__thing__", "-o", tmp_path / "a.png", "--steps", 1, "--hook", hook, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["images"][0]["prompt"] in ("a red apple", "a green apple")
