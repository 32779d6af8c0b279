"""A source that is named to run: when its artifact is taken from the cache, and what is said when it cannot be kept."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrify.core.artifact import Artifact
from vitrify.core.cache import Cache
from vitrify.core.errors import BadInput, Busy, UsageError
from vitrify.core.progress import Event
from vitrify.export import resolve
from vitrify.export.compile import compile_model
from vitrify.export.layout import files_of
from vitrify.export.resolve import KIND, artifact_for, artifact_key
from vitrify.export.source import Source, open_source
from vitrify.export.verify import verify_artifact
from vitrify.pipelines.control import is_residual

pytest.importorskip("torch", reason="needs the extra export")


@pytest.fixture
def diffusion(diffusion_source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(diffusion_source, tmp_path / "drawing")


@pytest.fixture
def emotions(emotions_source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(emotions_source, tmp_path / "faces of (2)")


@pytest.fixture
def own_cache(emotions_artifact: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own that knows the graphs."""
    own = tmp_path / "cache"
    for kind in ("graphs", "bindings"):
        shutil.copytree(cache / kind, own / kind, ignore=shutil.ignore_patterns(".*.part-*", ".*.lock"))
    monkeypatch.setenv("VITRIFY_CACHE", str(own))
    return own


def same_size_and_time(path: Path, text: str) -> None:
    """Rewrite a file so that only its content tells."""
    stat = path.stat()
    path.write_text(text)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_every_file_that_is_copied_enters_the_key(diffusion: Path) -> None:
    source = open_source(diffusion)
    names = files_of(source)
    assert {"model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", "unet/config.json",
            "vae_decoder/config.json", "tokenizer/tokenizer_config.json"} <= set(names)  # fmt: skip
    keys = {artifact_key(source)}
    for path in set(names.values()):
        text = path.read_text()
        same_size_and_time(path, text.replace("\n", "\t", 1) if "\n" in text else text + " ")
        keys.add(artifact_key(open_source(diffusion)))
    assert len(keys) == 1 + len(set(names.values()))


def test_what_makes_another_artifact_enters_the_key(emotions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(**options: str) -> str:
        return artifact_key(open_source(emotions, **options))

    first = key()
    assert key() == first
    assert key(revision="1" * 40) != first
    assert key(given="owner/other") != first
    os.utime(emotions / "model.safetensors", ns=(1, 1))
    touched = key()
    assert touched != first
    for name, value in (("FORM", -1), ("OPSET", -1), ("installed", lambda name: "another version")):
        with monkeypatch.context() as patch:
            patch.setattr(resolve, name, value)
            assert key() != touched, name
    assert key() == touched


@pytest.fixture
def renewed() -> Callable[[Path], tuple[Artifact, bool]]:
    """The artifact of a source, and whether it was exported for it."""

    def ask(folder: Path) -> tuple[Artifact, bool]:
        events: list[Event] = []
        artifact = artifact_for(str(folder), report=events.append)
        return artifact, any("exported into the cache" in e.note for e in events)

    return ask


def test_an_edited_preprocessing_is_exported_again(
    own_cache: Path, emotions: Path, renewed: Callable[[Path], tuple[Artifact, bool]]
) -> None:
    first, made = renewed(emotions)
    assert made
    assert renewed(emotions) == (first, False)
    path = emotions / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}))
    second, made = renewed(emotions)
    assert made
    assert second.pipeline["preprocess"]["image_mean"] == [0.1, 0.2, 0.3]
    assert json.loads((second.root / "preprocessor_config.json").read_text())["image_mean"] == [0.1, 0.2, 0.3]


def test_an_artifact_in_the_cache_is_named_after_its_source(own_cache: Path, emotions: Path) -> None:
    assert artifact_for(str(emotions)).name == "faces-of-2"


@pytest.mark.parametrize(
    ("given", "name"),
    [("owner/Some_model-v1.5", "Some_model-v1.5"), ("gpt2", "gpt2"), ("a b/c/", "c"), ("../..x", "x"), ("/", "model")],
)
def test_the_name_of_a_source(given: str, name: str) -> None:
    assert Source(Path(), given, "sd", "", {}, ()).name == name


def test_an_artifact_larger_than_the_cache_says_its_bound(
    own_cache: Path, emotions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRIFY_CACHE_MAX", "1000")
    with pytest.raises(
        BadInput, match=r"larger than the cache may be \(1000 bytes, \$VITRIFY_CACHE_MAX\).*vitrify exp"
    ):
        artifact_for(str(emotions))


def test_an_export_that_another_process_makes_is_waited_for_not_made_twice(own_cache: Path, emotions: Path) -> None:
    events: list[Event] = []
    with (
        Cache().put(KIND, artifact_key(open_source(emotions))),
        pytest.raises(Busy, match=r"Another process is exporting .*faces of \(2\) into the cache\. Wait"),
    ):
        artifact_for(str(emotions), report=events.append)
    assert events == [], "something was exported for nothing"


def test_what_is_asked_of_a_source_alone(emotions_artifact: Path, diffusion: Path, emotions: Path) -> None:
    with pytest.raises(UsageError, match="--prediction-type is for single checkpoints"):
        artifact_for(str(emotions_artifact), prediction_type="epsilon")
    with pytest.raises(UsageError, match="--config is for single checkpoints"):
        artifact_for(str(emotions), config=str(diffusion))
    with pytest.raises(UsageError, match="is an artifact that takes no ControlNet") as caught:
        artifact_for(str(emotions_artifact), control=True)
    assert caught.value.fix == "Export the model again, with --control."
    source = open_source(diffusion)
    assert artifact_key(source, control=True) != artifact_key(source)


@pytest.mark.slow  # traces a UNet with residuals
def test_a_source_is_exported_so_that_it_takes_controlnets(own_cache: Path, diffusion: Path, tmp_path: Path) -> None:
    made = artifact_for(str(diffusion), control=True)
    residuals = [name for name in made.components["unet"].inputs if is_residual(name)]
    assert residuals
    assert artifact_for(str(diffusion)).id != made.id, "without is another one"
    compiled = compile_model(diffusion, tmp_path / "int8", quant="int8-weights", control=True, verify=False)
    assert [name for name in compiled.components["unet"].inputs if is_residual(name)] == residuals
    assert compiled.built["command"].endswith("--control")
    assert artifact_for(str(tmp_path / "int8"), control=True).id == compiled.id


def test_what_is_read_of_a_source_is_not_asked_of_an_artifact(emotions_artifact: Path, tmp_path: Path) -> None:
    what = "--revision and --variant choose what is read of a source"
    with pytest.raises(UsageError, match=what):
        compile_model(emotions_artifact, tmp_path / "out", quant="int8-dynamic", revision="main", variant="fp16")
    with pytest.raises(UsageError, match=what):
        verify_artifact(emotions_artifact, str(emotions_artifact), revision="main", variant="fp16")
