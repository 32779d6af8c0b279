"""What an artifact holds beside its graphs, and what is said of the parts of a source that it does not hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import vitrify
from vitrify.core.errors import BadInput
from vitrify.export.job import ExportJob
from vitrify.export.layout import write_layout
from vitrify.export.source import open_source

pytest.importorskip("torch", reason="needs the extra export")


@pytest.fixture
def diffusion(diffusion_source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(diffusion_source, tmp_path / "source")


@pytest.fixture
def emotions(emotions_source: Path, tmp_path: Path) -> Path:
    return shutil.copytree(emotions_source, tmp_path / "source")


def edit(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


@pytest.fixture
def written(tmp_path: Path) -> Callable[[Path], tuple[Path, dict[str, Any], list[str]]]:
    """Writes the layout of a source: where, the settings and the notes."""

    def write(source: Path) -> tuple[Path, dict[str, Any], list[str]]:
        (tmp_path / "out").mkdir()
        return tmp_path / "out", *write_layout(open_source(source), tmp_path / "out")

    return write


def test_the_index_names_no_part_that_is_not_there(diffusion: Path, written: Callable[[Path], Any]) -> None:
    edit(
        diffusion / "model_index.json",
        safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
        feature_extractor=["transformers", "CLIPImageProcessor"],
        image_encoder=["transformers", "CLIPVisionModelWithProjection"],
        requires_safety_checker=True,
    )
    before = json.loads((diffusion / "model_index.json").read_text())
    root, _, notes = written(diffusion)
    index = json.loads((root / "model_index.json").read_text())
    left_out = {"safety_checker", "feature_extractor", "image_encoder"}
    assert {name for name in index if index[name] != before[name]} == left_out
    assert all(index[name] == [None, None] for name in left_out)
    assert index.keys() == before.keys()
    assert notes == ["its safety checker is left out: nothing looks at the pictures that it draws"]


def test_an_index_without_other_parts_stays_as_it_is(diffusion: Path, written: Callable[[Path], Any]) -> None:
    root, _, notes = written(diffusion)
    assert notes == []
    assert json.loads((root / "model_index.json").read_text()) == json.loads(
        (diffusion / "model_index.json").read_text()
    )


def test_a_model_whose_scheduler_we_do_not_have_is_exported_and_drawn_with_another(
    diffusion_artifact: Path, diffusion: Path, tmp_path: Path
) -> None:
    edit(diffusion / "scheduler/scheduler_config.json", _class_name="DDPMScheduler", variance_type="fixed_small")
    done = ExportJob(open_source(diffusion), tmp_path / "out", verify=True).run()
    assert "its scheduler DDPMScheduler is not one of ours: generate needs --scheduler" in done.notes
    assert done.artifact.pipeline["scheduler"]["_class_name"] == "DDPMScheduler"
    assert done.artifact.proof["images"]["pictures"] == 2
    pipeline = vitrify.load(done.artifact, "cpu")
    with pytest.raises(BadInput, match=r"scheduler class 'DDPMScheduler' is not supp.*Name one instead: ddim"):
        pipeline.generate("a red apple", steps=2, seed=1)
    own = vitrify.load(diffusion_artifact, "cpu")
    drawn = [p.generate("a red apple", steps=3, seed=1, scheduler="ddim").images[0] for p in (pipeline, own)]
    assert drawn[0].tobytes() == drawn[1].tobytes()
    pipeline.close()
    own.close()


def test_the_options_of_a_scheduler_that_we_do_not_have_are_checked(
    diffusion: Path, written: Callable[[Path], Any]
) -> None:
    edit(diffusion / "scheduler/scheduler_config.json", _class_name="DDPMScheduler", beta_schedule="no such")
    with pytest.raises(BadInput, match="no such"):
        written(diffusion)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"size": {"height": 384, "width": 384}}, "224x224 .* makes them sized 384x384"),
        ({"size": {"height": 224, "width": 256}}, "224x224 .* makes them sized 256x224"),
        ({"do_resize": False}, "224x224 .* in sizes that follow from their own"),
        ({"size": {"shortest_edge": 224}}, "224x224 .* in sizes that follow from their own"),
        ({"do_center_crop": True, "crop_size": {"height": 200, "width": 200}}, "224x224 .* makes them sized 200x200"),
    ],
)
def test_pictures_of_another_size_than_the_graph_takes_are_refused(
    emotions: Path, written: Callable[[Path], Any], changed: dict[str, Any], says: str
) -> None:
    edit(emotions / "preprocessor_config.json", **changed)
    fix = r'Set "size" in preprocessor_config\.json to {"height": 224, "width": 224}.*crop_size'
    with pytest.raises(BadInput, match=f"takes pictures of {says}.*{fix}"):
        written(emotions)


def test_a_crop_to_the_size_that_the_graph_takes_is_fine(emotions: Path, written: Callable[[Path], Any]) -> None:
    crop = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 256}}
    edit(emotions / "preprocessor_config.json", **crop)
    _, settings, _ = written(emotions)
    assert settings["preprocess"]["crop_size"] == {"height": 224, "width": 224}
