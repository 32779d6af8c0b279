"""The numeric proof and `verify` can fail: a byte, a weight, two swapped tensors, another model, another scheduler."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.artifact import Artifact, WeightFile, hash_file
from vitrify.core.errors import BadInput, NotFinite, ProofFailed, RuntimeFailure, VitrifyError
from vitrify.export.job import find_source
from vitrify.export.reference import reference_artifact
from vitrify.export.verify import verify_artifact
from vitrify.proof import numeric
from vitrify.proof.evidence import Evidence
from vitrify.proof.numeric import peak_memory, prove_numbers
from vitrify.proof.quality import psnr

pytest.importorskip("torch", reason="needs the extra export")


@pytest.fixture
def emotions(emotions_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(emotions_artifact, tmp_path / "emotions")


@pytest.fixture
def diffusion(diffusion_artifact: Path, tmp_path: Path) -> Path:
    return shutil.copytree(diffusion_artifact, tmp_path / "diffusion")


def header_of(file: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's table, and where its data begins."""
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        return json.loads(stream.read(length)), 8 + length


def tamper(file: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change one float16 tensor where it lies."""
    table, start = header_of(file)
    assert table[name]["dtype"] == "F16"
    first, last = table[name]["data_offsets"]
    data = bytearray(file.read_bytes())
    tensor = np.frombuffer(bytes(data[start + first : start + last]), np.float16)
    data[start + first : start + last] = change(tensor.copy()).astype(np.float16).tobytes()
    file.write_bytes(data)


def swap(file: Path, one: str, other: str) -> None:
    """Exchange two tensors of one shape: every shape, size and sum stays."""
    table, start = header_of(file)
    assert table[one]["shape"] == table[other]["shape"]
    (a, b), (c, d) = table[one]["data_offsets"], table[other]["data_offsets"]
    data = bytearray(file.read_bytes())
    data[start + a : start + b], data[start + c : start + d] = data[start + c : start + d], data[start + a : start + b]
    file.write_bytes(data)


def resigned(artifact: Path) -> Artifact:
    """The artifact with the hashes of the files that lie there now, as one would have that was built wrong."""
    found = Artifact.load(artifact)
    components = {
        n: replace(
            c, weights=tuple(WeightFile(w.path, w.bytes, hash_file(artifact / w.path)) for w in c.weights)
        )
        for n, c in found.components.items()
    }  # fmt: skip
    found = replace(found, components=components)
    found.save()
    return found


def twin_names(file: Path, marks: tuple[str, str]) -> tuple[str, str]:
    """Two tensors of a layer that have one shape, such as a query's and a key's weight."""
    table, _ = header_of(file)
    one = next(n for n in sorted(table) if marks[0] in n and n.endswith("weight"))
    other = one.replace(*marks)
    return one, other


def test_verify_passes_on_what_was_built(vitrify: Callable[..., Any], emotions: Path, emotions_source: Path) -> None:
    done = vitrify("verify", emotions, "--json")
    assert done.code == 0, done.err
    assert done.json["components"]["model"]["numeric"]["relative"] <= 1e-4
    assert done.json["proof"]["labels"]["pictures"] > 0
    assert Artifact.load(emotions).components["model"].proof == done.json["components"]["model"]


def test_verify_writes_the_proofs_that_an_export_left_out(emotions: Path) -> None:
    found = Artifact.load(emotions)
    model = replace(found.components["model"], proof={"graph": "not run", "weights": "not run", "numeric": "not run"})
    replace(found, components={"model": model}, proof={"labels": "not run"}).save()
    verify_artifact(emotions)
    proof = Artifact.load(emotions).components["model"].proof
    assert proof["graph"] == "not run", "only an export proves the graph"
    assert proof["weights"]["tensors"] > 10
    assert proof["numeric"]["relative"] <= 1e-4


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_verify_finds_one_changed_byte_of_the_weights(vitrify: Callable[..., Any], emotions: Path, place: str) -> None:
    file = emotions / "model.safetensors"
    data = bytearray(file.read_bytes())
    _, start = header_of(file)
    data[{"first": start, "middle": (start + len(data)) // 2, "last": len(data) - 1}[place]] ^= 1
    file.write_bytes(data)
    for command in (["verify", emotions], ["inspect", emotions, "--checksums"]):
        done = vitrify(*command, "--json")
        assert (done.code, done.error["code"]) == (6, "bad_artifact"), done.err
        assert "model.safetensors" in done.error["what"]


def test_verify_finds_a_changed_weight_whose_hash_was_made_to_fit(
    vitrify: Callable[..., Any], emotions: Path, emotions_source: Path
) -> None:
    tamper(emotions / "model.safetensors", "classifier.weight", lambda t: t * 1.01)
    resigned(emotions)
    before = (emotions / "artifact.json").read_bytes()
    done = vitrify("verify", emotions, "--json")
    assert (done.code, done.error["code"]) == (3, "proof_failed"), done.err
    assert "classifier.weight" in done.error["what"]
    assert (emotions / "artifact.json").read_bytes() == before, "a proof that failed is not written"


def test_the_numbers_alone_show_a_changed_weight(emotions: Path, emotions_source: Path) -> None:
    tamper(emotions / "model.safetensors", "classifier.weight", lambda t: t * 1.01)
    artifact = resigned(emotions)
    with pytest.raises(ProofFailed, match="logits"):
        prove_numbers(artifact, reference_artifact(find_source(str(emotions_source)), artifact.pipeline))


def test_a_proof_that_fails_leaves_its_figures(emotions: Path, emotions_source: Path) -> None:
    tamper(emotions / "model.safetensors", "classifier.weight", lambda t: t * 1.01)
    artifact, evidence = resigned(emotions), Evidence()
    reference = reference_artifact(find_source(str(emotions_source)), artifact.pipeline)
    with pytest.raises(ProofFailed) as caught:
        prove_numbers(artifact, reference, evidence=evidence)
    failed = evidence.artifact
    assert (failed.proof["status"], failed.proof["what"]) == ("failed", caught.value.what)
    assert failed.proof["labels"] == "not run", "what an earlier proof said is not said of this one"
    numeric = failed.components["model"].proof["numeric"]
    assert numeric["status"] == "failed"
    assert 1e-4 < numeric["relative"] < 1
    json.loads(json.dumps(failed.to_json(), allow_nan=False))


@pytest.mark.parametrize(
    ("exc", "marked"),
    [
        (ProofFailed("Labels differ.", "y"), True),
        (NotFinite("model gives NaN.", "y"), True),
        (RuntimeFailure("No memory is left.", "y"), False),
    ],
)
def test_only_what_was_computed_is_a_verdict(
    emotions: Path, monkeypatch: pytest.MonkeyPatch, exc: VitrifyError, marked: bool
) -> None:
    def failing(*given: Any) -> Any:
        raise exc

    monkeypatch.setattr(numeric, "compare_labels", failing)
    artifact, seen = Artifact.load(emotions), Evidence()
    with pytest.raises(type(exc)):
        prove_numbers(artifact, artifact, evidence=seen)
    assert (seen.artifact is not None) is marked
    if seen.artifact is not None:
        assert (seen.artifact.proof["status"], seen.artifact.proof["what"]) == ("failed", exc.what)


def test_a_component_without_numbers_fails_in_valid_json(emotions: Path, emotions_source: Path) -> None:
    tamper(emotions / "model.safetensors", "classifier.weight", lambda t: t * np.float16(np.nan))
    artifact, evidence = resigned(emotions), Evidence()
    reference = reference_artifact(find_source(str(emotions_source)), artifact.pipeline)
    with pytest.raises(ProofFailed):
        prove_numbers(artifact, reference, evidence=evidence)
    assert json.loads(json.dumps(evidence.artifact.to_json(), allow_nan=False))
    assert evidence.artifact.components["model"].proof["numeric"]["max_abs"] is None


def test_the_numbers_alone_show_two_swapped_tensors(emotions: Path, emotions_source: Path) -> None:
    one, other = twin_names(emotions / "model.safetensors", ("query", "key"))
    swap(emotions / "model.safetensors", one, other)
    artifact = resigned(emotions)
    with pytest.raises(ProofFailed):
        prove_numbers(artifact, reference_artifact(find_source(str(emotions_source)), artifact.pipeline))


def test_verify_against_a_source_with_two_tensors_swapped_fails(
    vitrify: Callable[..., Any], emotions: Path, emotions_source: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(emotions_source, tmp_path / "swapped")
    one, other = twin_names(source / "model.safetensors", ("query", "key"))
    swap(source / "model.safetensors", one, other)
    done = vitrify("verify", emotions, "--against", source, "--json")
    assert (done.code, done.error["code"]) == (3, "proof_failed"), done.err
    assert "bytes" in done.error["what"]


@pytest.mark.parametrize(
    ("component", "file", "marks"),
    [
        ("unet", "unet/diffusion_pytorch_model.safetensors", ("to_k", "to_v")),
        ("text_encoder", "text_encoder/model.safetensors", ("q_proj", "k_proj")),
        ("vae_decoder", "vae_decoder/diffusion_pytorch_model.safetensors", ("to_q", "to_k")),
    ],
)
def test_the_numbers_of_each_component_of_a_pipeline_show_a_swap(
    diffusion: Path, diffusion_source: Path, component: str, file: str, marks: tuple[str, str]
) -> None:
    one, other = twin_names(diffusion / file, marks)
    swap(diffusion / file, one, other)
    artifact = resigned(diffusion)
    with pytest.raises(ProofFailed) as caught:
        prove_numbers(artifact, reference_artifact(find_source(str(diffusion_source)), artifact.pipeline))
    assert caught.value.what.startswith(f"{component}:")


def test_two_artifacts_compare_without_torch(
    python: Callable[..., Any], emotions: Path, emotions_artifact: Path
) -> None:
    code = (
        "import json, sys; from pathlib import Path; from vitrify.export.verify import verify_artifact\n"
        "proved = verify_artifact(Path(sys.argv[1]), sys.argv[2])\n"
        "print(json.dumps(['torch' in sys.modules, proved.components['model'].proof['numeric']]))"
    )
    before = (emotions / "artifact.json").read_bytes()
    done = python(code, emotions, emotions_artifact)
    assert done.code == 0, done.err
    torch, numeric = done.json
    assert torch is False
    assert numeric["reference"].startswith("onnx")
    assert numeric["max_abs"] == 0
    assert (emotions / "artifact.json").read_bytes() == before, "the proof against the source stays"


@pytest.mark.parametrize("named", [True, False])
def test_an_artifact_is_not_proved_by_itself(emotions: Path, named: bool) -> None:
    (emotions / "artifact.json").unlink()  # one that another tool wrote knows no source
    with pytest.raises(BadInput, match="itself"):
        verify_artifact(emotions, str(emotions) if named else None)


def test_another_model_is_no_reference(emotions: Path, diffusion_artifact: Path) -> None:
    with pytest.raises(BadInput, match="another kind of model"):
        prove_numbers(Artifact.load(emotions), Artifact.load(diffusion_artifact))


def test_psnr_follows_its_definition() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    one = black + np.uint8(1)
    assert psnr(black, black) == float("inf")
    assert psnr(black, one) == pytest.approx(48.1308, abs=1e-4)  # 20 log10(255)
    assert psnr(black, black + np.uint8(255)) == 0
    assert psnr(np.asarray(Image.new("RGB", (4, 4), (255, 0, 0))), black) == pytest.approx(4.7712, abs=1e-4)


def test_the_peak_of_memory_holds_what_was_allocated() -> None:
    with peak_memory() as peak:
        before = peak["bytes"]
        block = np.ones(200_000_000, np.uint8)
        block[::4096] = 2
        time.sleep(0.2)
        del block
    assert peak["bytes"] - before > 150_000_000
