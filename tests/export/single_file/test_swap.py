"""A fine-tune in an existing artifact's graphs: what a fresh export makes, bit for bit, and no trace for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput
from vitrify.export import swap
from vitrify.export.job import ExportJob, export_model, find_source

torch = pytest.importorskip("torch", reason="needs the extra export")

UNET = "unet/diffusion_pytorch_model.safetensors"
Made = tuple[Any, Path, Path]


def changed(tensors: dict[str, Any], seed: int = 5) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        n: (t * (1 + 0.1 * rng.standard_normal(t.shape))).astype(t.dtype) if t.ndim > 1 and t.dtype.kind == "f" else t
        for n, t in tensors.items()
    }


@pytest.fixture(scope="module")
def tuned(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tune of the built-in model's UNet, stored in another type."""
    target = shutil.copytree(diffusion_source, tmp_path_factory.mktemp("tuned") / "tuned")
    save_file({n: t.astype(np.float32) for n, t in changed(load_file(target / UNET)).items()}, target / UNET)
    return target


def graphs_of(artifact: Artifact) -> dict[str, bytes]:
    return {name: component.graph_path.read_bytes() for name, component in artifact.components.items()}


def test_it_is_a_fresh_export_bit_for_bit(diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    fresh = export_model(tuned, tmp_path / "fresh", verify=False)
    done = ExportJob(find_source(str(tuned)), tmp_path / "out", False, graphs=Artifact.load(diffusion_artifact)).run()
    assert graphs_of(done.artifact) == graphs_of(fresh)
    assert done.artifact.id == fresh.id
    for name, component in done.artifact.components.items():
        assert component.proof["weights"] == fresh.components[name].proof["weights"]
        assert component.proof["graph"] == fresh.components[name].proof["graph"]
    assert done.artifact.id != Artifact.load(diffusion_artifact).id
    assert f"unet: graph of {diffusion_artifact}" in done.notes
    assert f"--graph-from {diffusion_artifact}" in done.artifact.built["command"]


def test_the_artifact_itself_again(diffusion_artifact: Path, diffusion_source: Path, tmp_path: Path) -> None:
    """Weights in float16, so every parameter has a Cast that must go and come again."""
    again = export_model(diffusion_source, tmp_path / "again", graph_from=diffusion_artifact, verify=False)
    assert graphs_of(again) == graphs_of(Artifact.load(diffusion_artifact))
    assert again.id == Artifact.load(diffusion_artifact).id


@pytest.mark.parametrize("model", ["diffusion", "emotions"])
def test_no_torch_is_needed_and_no_cache(
    python: Callable[..., Any], diffusion_artifact: Path, emotions_artifact: Path, models: Path, tuned: Path,
    tmp_path: Path, model: str,
) -> None:  # fmt: skip
    artifact, source = {
        "diffusion": (diffusion_artifact, tuned),
        "emotions": (emotions_artifact, models / "emoji-emotions"),
    }[model]
    done = python(
        "import sys, json\n"
        "for name in ('torch', 'diffusers', 'transformers', 'accelerate', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from vitrify.core.artifact import Artifact\n"
        "from vitrify.export.job import ExportJob, find_source\n"
        "graphs = Artifact.load(Path(sys.argv[2]))\n"
        "print(ExportJob(find_source(sys.argv[1]), Path(sys.argv[3]), False, graphs=graphs).run().artifact.id)",
        source,
        artifact,
        tmp_path / "out",
        VITRIFY_CACHE=str(tmp_path / "cache"),
    )
    assert done.code == 0, done.err
    swapped = Artifact.load(tmp_path / "out", checksums=True)
    assert swapped.id == done.out.strip()
    assert all(c.proof["weights"]["tensors"] > 10 for c in swapped.components.values())


def test_the_swapped_artifact_draws_its_own_pictures(diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    swapped = export_model(tuned, tmp_path / "out", graph_from=diffusion_artifact, verify=True)
    assert max(c.proof["numeric"]["relative"] for c in swapped.components.values()) <= 1e-4
    pictures = []
    for artifact in (Artifact.load(diffusion_artifact), swapped):
        drawn = vitrify.load(artifact, "cpu")
        pictures.append(np.asarray(drawn.generate("a red apple", steps=3, seed=1).images[0], int))
        drawn.close()
    assert np.abs(pictures[0] - pictures[1]).max() > 8


@pytest.mark.slow
def test_a_single_file_into_a_single_files_artifact(
    sd: Callable[[int], Made], layouts: Any, python: Callable[..., Any], tmp_path: Path
) -> None:
    _, folder, file = sd(1)
    first = export_model(file, tmp_path / "first", config=folder, verify=False)
    save_file(changed(load_file(file)), tmp_path / "tuned.safetensors")
    fresh = export_model(tmp_path / "tuned.safetensors", tmp_path / "fresh", config=folder, verify=False)
    done = python(
        "import sys\n"
        "from vitrify.export.job import export_model\n"
        "made = export_model(sys.argv[1], sys.argv[3], graph_from=sys.argv[2], verify=False)\n"
        "print(made.id, 'torch' in sys.modules)",
        tmp_path / "tuned.safetensors",
        first.root,
        tmp_path / "out",
    )
    assert done.code == 0, done.err
    assert done.out.split() == [fresh.id, "False"]
    assert graphs_of(Artifact.load(tmp_path / "out")) == graphs_of(fresh)


def test_a_single_file_into_a_folders_artifact(sd: Callable[[int], Made], tmp_path: Path) -> None:
    _, folder, file = sd(1)
    first = export_model(folder, tmp_path / "first", verify=False)
    swapped = export_model(file, tmp_path / "out", graph_from=first.root, verify=False)
    for name, component in swapped.components.items():
        assert component.proof["weights"]["sha256"] == first.components[name].proof["weights"]["sha256"]


def test_a_quantized_artifact_is_refused(diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    from vitrify.export.compile import compile_model

    compile_model(diffusion_artifact, tmp_path / "int8", quant="int8-weights", verify=False)
    with pytest.raises(BadInput, match=r"is quantized \(int8-weights\)") as caught:
        export_model(tuned, tmp_path / "out", graph_from=tmp_path / "int8")
    assert "compile the new one again" in caught.value.fix


def test_another_config_is_refused_by_the_entry(diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tuned, tmp_path / "source")
    config = json.loads((source / "unet/config.json").read_text())
    (source / "unet/config.json").write_text(json.dumps(config | {"attention_head_dim": 16}))
    with pytest.raises(BadInput, match="its unet is of another architecture: attention_head_dim is") as caught:
        export_model(source, tmp_path / "out", graph_from=diffusion_artifact)
    assert "--graph-from" in caught.value.fix


def test_an_entry_that_one_config_leaves_out_has_its_default(
    diffusion_artifact: Path, tuned: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tuned, tmp_path / "source")
    config = json.loads((source / "unet/config.json").read_text())
    assert config.pop("resnet_time_scale_shift") == "default"
    (source / "unet/config.json").write_text(json.dumps(config))
    assert export_model(source, tmp_path / "out", graph_from=diffusion_artifact, verify=False)
    (source / "unet/config.json").write_text(json.dumps(config | {"resnet_time_scale_shift": "scale_shift"}))
    with pytest.raises(BadInput, match=r"resnet_time_scale_shift is default in its .* and scale_shift"):
        export_model(source, tmp_path / "other", graph_from=diffusion_artifact, verify=False)


def test_another_shape_is_refused_by_the_tensor(diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tuned, tmp_path / "source")
    tensors = load_file(source / UNET)
    tensors["conv_in.weight"] = np.ascontiguousarray(tensors["conv_in.weight"][:, :, :1])
    save_file(tensors, source / UNET)
    with pytest.raises(BadInput, match=r"conv_in\.weight .* is F32 \[48, 4, 1, 3\]; .* wants \[48, 4, 3, 3\]"):
        export_model(source, tmp_path / "out", graph_from=diffusion_artifact)
    assert not (tmp_path / "out").exists()


def test_another_family_is_refused(emotions_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="has no text_encoder"):
        export_model(tuned, tmp_path / "out", graph_from=emotions_artifact)


def test_names_that_tell_nothing_are_left_to_the_module(diffusion_artifact: Path, tuned: Path) -> None:
    artifact = Artifact.load(diffusion_artifact)
    part = next(c for c in find_source(str(tuned)).components if c.spec.name == "unet")
    graph = swap.graph_from_artifact(artifact, part.spec, part.config)
    assert swap.entries_by_name(artifact, part.spec, graph.model, part.checkpoint) is not None
    odd = {**part.checkpoint, "surprise": part.checkpoint["conv_in.bias"]}
    assert swap.entries_by_name(artifact, part.spec, graph.model, odd) is None


def test_the_command(vitrify: Callable[..., Any], diffusion_artifact: Path, tuned: Path, tmp_path: Path) -> None:
    done = vitrify("export", tuned, "--graph-from", diffusion_artifact, "-o", tmp_path / "out", "--no-verify", "--json")
    assert done.code == 0, done.err
    assert any("graph of" in note for note in done.json["notes"])
