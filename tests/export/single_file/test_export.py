"""A single checkpoint exported: it computes what the model does that it was made of; its bytes stay where they are."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, UsageError
from vitrify.export.job import ExportJob, export_model, find_source
from vitrify.export.resolve import artifact_for
from vitrify.export.verify import verify_artifact

torch = pytest.importorskip("torch", reason="needs the extra export")

pytestmark = pytest.mark.slow  # traces many graphs: minutes on an empty cache

PROMPT, NEGATIVE = "a red apple on a table", "blurry"
Made = tuple[Any, Path, Path]


@pytest.fixture(scope="module")
def exported(sd: Callable[[int], Made], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """exported(1 or 2): the export of the single checkpoint, proved against diffusers' single-file loader."""
    made: dict[int, Any] = {}

    def export(kind: int) -> Any:
        if kind not in made:
            _, folder, file = sd(kind)
            target = tmp_path_factory.mktemp("exported") / "artifact"
            made[kind] = ExportJob(find_source(str(file), config=str(folder)), target, verify=True).run()
        return made[kind]

    return export


@pytest.mark.parametrize("kind", [1, 2])
def test_it_is_proved_against_diffusers_own_loader(exported: Callable[[int], Any], kind: int) -> None:
    artifact = exported(kind).artifact
    for component in artifact.components.values():
        assert component.proof["numeric"]["relative"] <= 1e-5
        assert component.proof["weights"]["tensors"] > 10
    assert artifact.proof["images"]["pictures"] == 2


@pytest.mark.parametrize("kind", [1, 2])
def test_it_draws_what_the_model_draws_that_it_was_made_from(
    sd: Callable[[int], Made], exported: Callable[[int], Any], kind: int
) -> None:
    size = {"width": 48, "height": 32}
    expected = sd(kind)[0](
        PROMPT, negative_prompt=NEGATIVE, num_inference_steps=5, guidance_scale=5.0, output_type="np",
        generator=torch.Generator().manual_seed(3), **size,
    ).images[0]  # fmt: skip
    drawn = vitrify.load(exported(kind).artifact, "cpu")
    result = drawn.generate(PROMPT, negative_prompt=NEGATIVE, steps=5, guidance=5.0, seed=3, **size)
    drawn.close()
    assert np.abs(np.asarray(result.images[0], float) - expected * 255).max() <= 1
    assert expected.std() > 0.01, "a picture of one colour proves nothing"


@pytest.mark.parametrize("kind", [1, 2])
def test_every_weight_is_a_reference_into_the_users_file(
    sd: Callable[[int], Made], exported: Callable[[int], Any], kind: int
) -> None:
    done, (_, _, file) = exported(kind), sd(kind)
    for component in done.artifact.components.values():
        assert [Path(w.path).name for w in component.weights] == [file.name]
        assert (component.root / component.weights[0].path).stat().st_ino == file.stat().st_ino
    assert f"{file.name} is a Stable Diffusion {kind} checkpoint in its original layout" in done.notes
    assert not any("copied" in note for note in done.notes)
    assert any("belong to no component" in note and "betas (1)" in note for note in done.notes)


def test_the_manifest_says_how_it_was_made(sd: Callable[[int], Made], exported: Callable[[int], Any]) -> None:
    artifact, (_, folder, file) = exported(1).artifact, sd(1)
    assert artifact.model["source"] == str(file)
    assert artifact.model["config"] == str(folder)
    assert artifact.built["command"] == f"vitrify export {file} --config {folder} --verify"


def test_the_second_export_imports_no_torch(
    python: Callable[..., Any], sd: Callable[[int], Made], exported: Callable[[int], Any], tmp_path: Path
) -> None:
    _, folder, file = sd(1)
    first = exported(1).artifact
    done = python(
        "import sys, json\n"
        "from pathlib import Path\n"
        "from vitrify.export.job import ExportJob, find_source\n"
        "job = ExportJob(find_source(sys.argv[1], config=sys.argv[2]), Path(sys.argv[3]), verify=False).run()\n"
        "print(json.dumps({'id': job.artifact.id, 'heavy': [m for m in ('torch', 'diffusers', 'transformers') "
        "if m in sys.modules]}))",
        file,
        folder,
        tmp_path / "out",
    )
    assert done.code == 0, done.err
    assert done.json == {"id": first.id, "heavy": []}


def test_it_is_the_diffusers_folder_with_its_weights_elsewhere(
    sd: Callable[[int], Made], exported: Callable[[int], Any], tmp_path: Path
) -> None:
    """The same graphs, settings and files beside them."""
    _, folder, _ = sd(1)
    plain, single = export_model(folder, tmp_path / "plain", verify=False), exported(1).artifact
    assert plain.pipeline == single.pipeline
    for name, component in plain.components.items():
        assert component.inputs == single.components[name].inputs
        assert component.proof["weights"]["tensors"] == single.components[name].proof["weights"]["tensors"]
        # one sha256 over every name, type, shape and content
        assert component.proof["weights"]["sha256"] == single.components[name].proof["weights"]["sha256"]
    assert [f.name for f in sorted((plain.root / "tokenizer").iterdir())] == [
        f.name for f in sorted((single.root / "tokenizer").iterdir())
    ]


def test_an_artifact_can_give_the_configs(
    sd: Callable[[int], Made], exported: Callable[[int], Any], tmp_path: Path
) -> None:
    _, _, file = sd(1)
    first = exported(1).artifact
    again = export_model(file, tmp_path / "again", config=first.root, verify=False)
    assert again.id == first.id


def test_verify_finds_the_file_and_its_configs_again(exported: Callable[[int], Any], tmp_path: Path) -> None:
    copy = shutil.copytree(exported(1).artifact.root, tmp_path / "copy", copy_function=os.link)
    proved = verify_artifact(copy)
    assert proved.components["unet"].proof["numeric"]["relative"] <= 1e-5


def test_what_the_model_predicts_can_be_said(sd: Callable[[int], Made], tmp_path: Path) -> None:
    _, folder, file = sd(1)
    artifact = export_model(file, tmp_path / "out", config=folder, prediction_type="v_prediction", verify=False)
    assert artifact.pipeline["scheduler"]["prediction_type"] == "v_prediction"
    assert "--prediction-type v_prediction" in artifact.built["command"]
    with pytest.raises(UsageError, match="no prediction type 'v'"):
        find_source(str(file), config=str(folder), prediction_type="v")


def test_a_file_that_is_named_to_run_gets_its_configs_from_its_shapes(sd: Callable[[int], Made]) -> None:
    """These shapes are no known model's."""
    file = sd(1)[2]
    with pytest.raises(BadInput, match="shapes of no Stable Diffusion 1 model whose config is known") as caught:
        artifact_for(str(file))
    assert "--config FOLDER" in caught.value.fix


@pytest.mark.parametrize(("option", "value"), [("config", "x"), ("prediction_type", "epsilon")])
def test_options_of_single_files_are_refused_for_folders(sd: Callable[[int], Made], option: str, value: str) -> None:
    with pytest.raises(UsageError, match="single checkpoints"):
        find_source(str(sd(1)[1]), **{option: value})


def test_the_command_takes_a_file(vitrify: Callable[..., Any], sd: Callable[[int], Made], tmp_path: Path) -> None:
    _, folder, file = sd(1)
    done = vitrify("export", file, "--config", folder, "-o", tmp_path / "out", "--no-verify", "--json")
    assert done.code == 0, done.err
    assert Artifact.load(tmp_path / "out").pipeline["family"] == "sd"
    missing = vitrify("export", tmp_path / "none.safetensors", "--json")
    assert (missing.code, missing.error["what"]) == (2, f"{tmp_path}/none.safetensors does not exist.")


def test_mixed_element_types_stay_as_they_are(
    sd: Callable[[int], Made], layouts: Any, exported: Callable[[int], Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    _, folder, file = sd(1)
    kinds = {"model.": torch.float16, "first_": torch.float32, "cond_s": torch.bfloat16}
    tensors = {n: t.to(kinds.get(n[:6], t.dtype)) if t.is_floating_point() else t for n, t in load_file(file).items()}
    mixed = layouts.save(tensors, tmp_path / "mixed.safetensors")
    artifact = export_model(mixed, tmp_path / "out", config=folder, verify=True)
    assert {n: c.precision["weights"] for n, c in artifact.components.items()} == {
        "text_encoder": "bfloat16", "unet": "float16", "vae_decoder": "float32", "vae_encoder": "float32",
    }  # fmt: skip
    assert max(c.proof["numeric"]["relative"] for c in artifact.components.values()) <= 1e-5


def test_eight_bit_floats_are_widened_exactly(
    sd: Callable[[int], Made], layouts: Any, exported: Callable[[int], Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from vitrify.core.safetensors_header import read_tensor

    _, folder, file = sd(1)
    tensors = load_file(file)
    eight = {n: t.to(torch.float8_e4m3fn) if n.startswith("model.") and t.ndim > 1 else t for n, t in tensors.items()}
    path = layouts.save(eight, tmp_path / "eight.safetensors")
    done = ExportJob(find_source(str(path), config=str(folder)), tmp_path / "out", verify=False).run()
    assert any("stored as F8_E4M3, widened to float16" in note for note in done.notes)
    source = find_source(str(path), config=str(folder))
    unet = next(c for c in source.components if c.spec.name == "unet").tensors(tmp_path / "side")
    for name in ("conv_in.weight", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"):
        entry = unet[name]
        assert entry.dtype == "F16"
        original = [n for n in eight if layouts_name(n, name)]
        assert torch.equal(torch.from_numpy(read_tensor(entry, "float32")), eight[original[0]].float())


def layouts_name(original: str, name: str) -> bool:
    """Whether these are the two names of one of the tensors above."""
    return original == {
        "conv_in.weight": "model.diffusion_model.input_blocks.0.0.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight":
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
    }[name]  # fmt: skip


def test_what_the_file_lacks_comes_from_the_folder(
    sd: Callable[[int], Made], layouts: Any, exported: Callable[[int], Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    _, folder, file = sd(1)
    unet = {n: t for n, t in load_file(file).items() if n.startswith("model.")}
    path = layouts.save(unet, tmp_path / "unet.safetensors")
    done = ExportJob(find_source(str(path), config=str(folder)), tmp_path / "out", verify=True).run()
    whole = exported(1).artifact
    for name, component in done.artifact.components.items():
        assert component.proof["weights"]["sha256"] == whole.components[name].proof["weights"]["sha256"]
    assert Path(done.artifact.components["vae_decoder"].weights[0].path).name == "diffusion_pytorch_model.safetensors"
    assert json.loads((done.artifact.root / "model_index.json").read_text())["vae"] == ["diffusers", "AutoencoderKL"]


def test_a_disk_that_cannot_link_gets_each_components_own_tensors(
    vitrify: Callable[..., Any], sd: Callable[[int], Made], exported: Callable[[int], Any],
    small_disk: Callable[[int], Path],
) -> None:  # fmt: skip
    _, folder, file = sd(1)
    assert exported(1)
    disk = small_disk(40_000_000)
    done = vitrify("export", file, "--config", folder, "-o", disk / "out", "--no-verify", "--json")
    assert done.code == 0, done.err
    artifact = Artifact.load(disk / "out", checksums=True)
    assert any("unet: its tensors are copied out of" in note for note in done.json["notes"])
    sizes = {n: sum(w.bytes for w in c.weights) for n, c in artifact.components.items()}
    assert sizes["unet"] < file.stat().st_size / 2, "a copy of the whole file beside each graph would be much more"
