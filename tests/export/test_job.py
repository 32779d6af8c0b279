"""An export from end to end: what it proves, links and reuses, in every dtype, and what is left when it is stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput
from vitrify.export.job import ExportJob, export_model, find_source

torch = pytest.importorskip("torch", reason="needs the extra export")

EXAMPLES = {  # the sizes that the graphs are traced with; a proof at these would not show a size that was baked in
    "text_encoder": {"batch": 3, "tokens": 77},
    "unet": {"batch": 3, "height": 24, "width": 40, "tokens": 77},
    "vae_decoder": {"batch": 3, "latent_height": 6, "latent_width": 10},
    "vae_encoder": {"batch": 3, "height": 24, "width": 40},
    "model": {"batch": 3},
}


@pytest.fixture(scope="module")
def artifacts(diffusion_artifact: Path, emotions_artifact: Path) -> dict[str, Artifact]:
    return {"diffusion": Artifact.load(diffusion_artifact), "emotions": Artifact.load(emotions_artifact)}


@pytest.mark.parametrize(
    ("model", "name"),
    [("diffusion", n) for n in ("text_encoder", "unet", "vae_decoder", "vae_encoder")] + [("emotions", "model")],
)
def test_every_component_is_proved_three_times(artifacts: dict[str, Artifact], model: str, name: str) -> None:
    component = artifacts[model].components[name]
    for kind in ("graph", "numeric"):
        proof = component.proof[kind]
        assert proof["relative"] <= 1e-4
        assert proof["reference"] == "torch float32"
        outputs = proof["outputs"]
        assert {o["output"] for o in outputs} == set(component.outputs)
        assert all(o["max_abs"] <= 1e-4 * o["range"] for o in outputs)
        assert all(o["range"] > 0 for o in outputs), "an output that is one number proves nothing"
        sizes = [o["sizes"] for o in outputs]
        assert len({tuple(s.items()) for s in sizes}) == 2
        assert EXAMPLES[name] not in sizes
        assert {s["batch"] for s in sizes} != {EXAMPLES[name]["batch"]}
    assert component.proof["weights"]["tensors"] > 10
    assert len(component.proof["weights"]["sha256"]) == 64


def test_pictures_and_labels_are_proved(artifacts: dict[str, Artifact]) -> None:
    pictures = artifacts["diffusion"].proof["images"]
    assert pictures["pictures"] == 2
    assert pictures["min_psnr_db"] is None or pictures["min_psnr_db"] >= 50
    assert artifacts["emotions"].proof["labels"]["max_score_difference"] <= 1e-3
    for artifact in artifacts.values():
        assert artifact.proof["versions"]["torch"]
        assert artifact.proof["machine"]["python"]


def test_the_artifact_is_whole(artifacts: dict[str, Artifact], diffusion_source: Path) -> None:
    for artifact in artifacts.values():
        artifact.verify(checksums=True)
        assert all(w.sha256 for c in artifact.components.values() for w in c.weights)
        assert [p for p in artifact.root.rglob("*") if p.name.startswith(".")] == []
        assert Artifact.load(artifact.root).to_json() == artifact.to_json()
    files = {p.relative_to(diffusion_source).as_posix() for p in diffusion_source.rglob("*.json")}
    kept = {p.relative_to(artifacts["diffusion"].root).as_posix() for p in artifacts["diffusion"].root.rglob("*.json")}
    assert {f for f in files if not f.startswith("vae/")} <= kept


def test_weights_are_linked_and_the_graphs_hold_none(artifacts: dict[str, Artifact], models: Path) -> None:
    weights = {
        "text_encoder": "emoji-diffusion/text_encoder/model.safetensors",
        "unet": "emoji-diffusion/unet/diffusion_pytorch_model.safetensors",
        "vae_decoder": "emoji-diffusion/vae/diffusion_pytorch_model.safetensors",
        "vae_encoder": "emoji-diffusion/vae/diffusion_pytorch_model.safetensors",
        "model": "emoji-emotions/model.safetensors",
    }
    for artifact in artifacts.values():
        for name, component in artifact.components.items():
            (file,) = component.weights
            assert (artifact.root / file.path).stat().st_ino == (models / weights[name]).stat().st_ino
            assert not (artifact.root / file.path).is_symlink()
            assert component.graph_path.stat().st_size < 1_000_000


def test_the_same_source_gives_the_same_id(
    artifacts: dict[str, Artifact], emotions_source: Path, tmp_path: Path
) -> None:
    again = export_model(emotions_source, tmp_path / "again", verify=False)
    assert again.id == artifacts["emotions"].id
    assert again.components["model"].proof["numeric"] == "not run"


def test_the_manifest_tells_how_it_was_made(artifacts: dict[str, Artifact], emotions_source: Path) -> None:
    artifact = artifacts["emotions"]
    assert artifact.built["command"] == f"vitrify export {emotions_source} --verify"
    assert artifact.components["model"].precision == {"recipe": "fp32", "weights": "float16", "activations": "float32"}
    assert set(artifact.proof["machine"]) == {"system", "machine", "cpu", "python"}


def test_the_command_names_what_shapes_the_artifact_and_never_the_token(
    emotions_artifact: Path, emotions_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    shutil.copytree(emotions_source, tmp_path / "my models/faces")
    monkeypatch.chdir(tmp_path)
    done = export_model("my models/faces", tmp_path / "out", token="hf_secret", verify=False)
    assert done.built["command"] == "vitrify export 'my models/faces' --no-verify"
    assert "hf_secret" not in (tmp_path / "out/artifact.json").read_text()


def test_every_file_of_an_artifact_has_its_hash(artifacts: dict[str, Artifact]) -> None:
    for artifact in artifacts.values():
        assert artifact.unhashed() == []
        files = {p.relative_to(artifact.root).as_posix() for p in artifact.root.rglob("*") if p.is_file()}
        assert {f.path for f in artifact.recorded()} == files - {"artifact.json"}


def fine_tune(source: Path, target: Path, file: str) -> Path:
    """A model of the same architecture with other weights."""
    shutil.copytree(source, target)
    tensors = load_file(source / file)
    rng = np.random.default_rng(3)
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            tensors[name] = (tensor * (1 + 0.05 * rng.standard_normal(tensor.shape))).astype(tensor.dtype)
    save_file(tensors, target / file, {"format": "pt"})
    return target


@pytest.mark.parametrize("model", ["diffusion", "emotions"])
def test_a_fine_tune_reuses_the_graphs_without_torch(
    python: Callable[..., Any], artifacts: dict[str, Artifact], models: Path, tmp_path: Path, model: str
) -> None:
    file = {"diffusion": "unet/diffusion_pytorch_model.safetensors", "emotions": "model.safetensors"}[model]
    source = fine_tune(models / f"emoji-{model}", tmp_path / "tuned", file)
    done = python(
        "import sys, json\n"
        "from pathlib import Path\n"
        "from vitrify.export.job import ExportJob, find_source\n"
        "done = ExportJob(find_source(sys.argv[1]), Path(sys.argv[2]), verify=False).run()\n"
        "print(json.dumps({'notes': done.notes, 'heavy': [m for m in ('torch', 'diffusers', 'transformers') "
        "if m in sys.modules]}))",
        source,
        tmp_path / "out",
    )
    assert done.code == 0, done.err
    assert done.json["heavy"] == []
    first, second = artifacts[model], Artifact.load(tmp_path / "out")
    notes = [n for n in done.json["notes"] if "from the cache" in n]
    assert len(notes) == len(first.components)
    assert second.id != first.id
    for name, component in second.components.items():
        assert component.proof["graph"] == first.components[name].proof["graph"]
        assert component.proof["weights"]["tensors"] == first.components[name].proof["weights"]["tensors"]
    changed = "unet" if model == "diffusion" else "model"
    assert second.components[changed].proof["weights"] != first.components[changed].proof["weights"]


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def stored_as(folder: Path, stem: str, dtype: str, shards: int = 1) -> None:
    """Rewrite a checkpoint in another dtype, in one file or in several with an index."""
    from safetensors.torch import load_file, save_file

    whole = folder / f"{stem}.safetensors"
    tensors = {n: t.to(DTYPES[dtype]) if t.is_floating_point() else t for n, t in load_file(whole).items()}
    whole.unlink()
    names = sorted(tensors)
    if shards == 1:
        save_file(tensors, whole, {"format": "pt"})
        return
    table = {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.safetensors"
        save_file({n: tensors[n] for n in names[i::shards]}, folder / file, {"format": "pt"})
        table |= dict.fromkeys(names[i::shards], file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": table}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(("dtype", "shards"), [("float32", 1), ("bfloat16", 1), ("float16", 3), ("bfloat16", 2)])
def test_a_classifier_exports_from_every_dtype_and_from_shards(
    emotions_artifact: Path, emotions_source: Path, tmp_path: Path, dtype: str, shards: int
) -> None:
    source = shutil.copytree(emotions_source, tmp_path / "source")
    stored_as(source, "model", dtype, shards)
    artifact = export_model(source, tmp_path / "out", verify=True)
    component = artifact.components["model"]
    assert component.precision["weights"] == dtype
    assert component.proof["numeric"]["relative"] <= 1e-4
    assert len(component.weights) == shards
    for weight in component.weights:
        assert (source / weight.path).stat().st_ino == (artifact.root / weight.path).stat().st_ino


def test_a_pipeline_exports_from_mixed_dtypes_and_shards(
    diffusion_artifact: Path, diffusion_source: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(diffusion_source, tmp_path / "source")
    stored_as(source / "unet", "diffusion_pytorch_model", "bfloat16", shards=2)
    stored_as(source / "vae", "diffusion_pytorch_model", "float32")
    stored_as(source / "text_encoder", "model", "float16", shards=2)
    artifact = export_model(source, tmp_path / "out", verify=True)
    assert {n: c.precision["weights"] for n, c in artifact.components.items()} == {
        "text_encoder": "float16", "unet": "bfloat16", "vae_decoder": "float32", "vae_encoder": "float32",
    }  # fmt: skip
    assert max(c.proof["numeric"]["relative"] for c in artifact.components.values()) <= 1e-4
    assert artifact.proof["images"]["pictures"] == 2


def test_without_verify_the_numeric_proof_says_not_run(emotions_source: Path, tmp_path: Path) -> None:
    done = ExportJob(find_source(str(emotions_source)), tmp_path / "out", verify=False).run()
    assert done.artifact.components["model"].proof["numeric"] == "not run"
    assert done.artifact.proof["labels"] == "not run"
    assert any("numeric proof not run" in note for note in done.notes)


def test_replacing_needs_a_word(emotions_source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    first = export_model(emotions_source, target, verify=False)
    (target / "mine.txt").write_text("added later")
    with pytest.raises(BadInput, match="exists"):
        export_model(emotions_source, target, verify=False)
    assert (target / "mine.txt").exists()
    second = export_model(emotions_source, target, verify=False, replace=True)
    assert second.id == first.id
    assert not (target / "mine.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def parts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if ".part-" in p.name)


@pytest.fixture
def under_way(environment: dict[str, str], emotions_source: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An export that has written its graph and now imports torch for the proof."""
    with subprocess.Popen(
        [sys.executable, "-m", "vitrify", "export", emotions_source, "-o", tmp_path / "out", "--verify", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        end = time.monotonic() + 120
        while not any((p / "model.onnx").exists() for p in parts(tmp_path)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.002)
        yield process
        process.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_a_killed_export_leaves_no_artifact_and_the_next_one_cleans_up(
    emotions_artifact: Path, emotions_source: Path, under_way: subprocess.Popen[str], tmp_path: Path
) -> None:
    under_way.kill()
    under_way.communicate()
    assert not (tmp_path / "out").exists()
    assert len(parts(tmp_path)) == 1, "it was killed before it had begun or after it was done"
    artifact = export_model(emotions_source, tmp_path / "out", verify=False)
    artifact.verify(checksums=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_ends_it_and_leaves_nothing(
    emotions_artifact: Path, under_way: subprocess.Popen[str], tmp_path: Path
) -> None:
    under_way.send_signal(signal.SIGINT)
    out, err = under_way.communicate(timeout=60)
    assert under_way.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_of_one_target_is_told_who_writes_it(
    vitrify: Callable[..., Any], emotions_artifact: Path, emotions_source: Path, under_way: subprocess.Popen[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    under_way.send_signal(signal.SIGSTOP)
    try:
        second = vitrify("export", emotions_source, "-o", tmp_path / "out", "--no-verify", "--json")
    finally:
        under_way.send_signal(signal.SIGCONT)
    assert (second.code, second.error["code"]) == (2, "busy"), second.err
    _, err = under_way.communicate(timeout=300)
    assert under_way.returncode == 0, err
    Artifact.load(tmp_path / "out", checksums=True)


@pytest.mark.parametrize("size", [65_536, 1_500_000, 2_650_000])
def test_a_full_disk_is_an_error_that_leaves_nothing(
    vitrify: Callable[..., Any], emotions_artifact: Path, emotions_source: Path, small_disk: Callable[[int], Path],
    size: int,
) -> None:  # fmt: skip
    disk = small_disk(size)
    done = vitrify("export", emotions_source, "-o", disk / "out", "--no-verify", "--json")
    assert "Traceback" not in done.err, done.err
    assert (done.code, done.error["code"]) == (2, "disk"), done.err
    assert "full" in done.error["what"]
    assert list(disk.iterdir()) == []


def test_a_disk_that_cannot_link_gets_a_copy_with_a_word_about_it(
    vitrify: Callable[..., Any], emotions_artifact: Path, emotions_source: Path, small_disk: Callable[[int], Path]
) -> None:
    disk = small_disk(20_000_000)
    done = vitrify("export", emotions_source, "-o", disk / "out", "--no-verify", "--json")
    assert done.code == 0, done.err
    assert any("was copied" in note for note in done.json["notes"])
    Artifact.load(disk / "out", checksums=True)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind (not root)")
def test_a_folder_that_may_not_be_written_is_an_error(
    vitrify: Callable[..., Any], emotions_source: Path, tmp_path: Path
) -> None:
    tmp_path.chmod(0o555)
    try:
        done = vitrify("export", emotions_source, "-o", tmp_path / "out", "--json")
    finally:
        tmp_path.chmod(0o755)
    assert (done.code, done.error["code"]) == (2, "disk"), done.err


def test_a_moved_artifact_runs_without_its_source(emotions_artifact: Path, tmp_path: Path) -> None:
    from PIL import Image

    moved = shutil.copytree(emotions_artifact, tmp_path / "elsewhere")
    pipeline = vitrify.load(moved, "cpu")
    assert len(pipeline.classify([Image.new("RGB", (20, 20))])[0]) == 5
    pipeline.close()
