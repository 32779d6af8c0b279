"""The proof of a compilation: what it says, what fails it, and that what failed is not published or says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vitrify.core.artifact import Artifact
from vitrify.core.errors import ProofFailed
from vitrify.core.progress import Event
from vitrify.core.safetensors_header import read_header, read_tensor
from vitrify.export.compile import Compiled, CompileJob
from vitrify.export.verify import verify_artifact
from vitrify.quant.recipes import recipe

pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

INT8 = recipe("int8-weights")


def test_its_proof_says_how_good_it_is(pictures: Compiled, labels: Compiled) -> None:
    images = pictures.artifact.proof["images"]
    assert (images["pictures"], images["steps"], len(images["psnr_db"])) == (8, 20, 8)
    assert images["mean_psnr_db"] >= INT8.min_psnr
    assert images["mean_psnr_db"] == pytest.approx(np.mean(images["psnr_db"]))
    assert 0.99 < images["min_ssim"] <= 1
    assert len(images["latent_error"]) == 20
    found = labels.artifact.proof["labels"]
    assert found["pictures"] == 64
    assert found["agreement"] >= INT8.min_agreement
    assert 0 < found["max_score_difference"] < 0.1
    for done, rounded in ((pictures, {"unet", "text_encoder"}), (labels, {"model"})):
        assert done.artifact.proof["machine"]["cpu"]
        assert "status" not in done.artifact.proof
        for name, component in done.artifact.components.items():
            numeric = component.proof["numeric"]
            assert numeric["relative"] > 0
            assert (numeric["relative"] > 1e-4) == (name in rounded), "what is not rounded is held to its numbers"
            assert component.proof["weights"]["tensors"] > 10
            assert component.proof["graph"] != "not run"


def test_verify_holds_it_to_its_recipe(labels: Compiled, labelling: Artifact) -> None:
    before = (labels.artifact.root / "artifact.json").read_bytes()
    proved = verify_artifact(labels.artifact.root, str(labelling.root))
    assert proved.proof["labels"] == labels.artifact.proof["labels"]
    assert (labels.artifact.root / "artifact.json").read_bytes() == before


def test_what_is_below_its_tolerance_is_not_published(labelling: Artifact, tmp_path: Path) -> None:
    asked = replace(recipe("int4-weights"), min_agreement=1.5)  # that nothing reaches
    with pytest.raises(ProofFailed, match=r"Labels differ.*150% and 1 are asked for") as caught:
        CompileJob(labelling, tmp_path / "out", recipe=asked).run()
    assert caught.value.exit_code == 3
    assert caught.value.fix.startswith("Nothing was published.")
    assert "--keep-failed" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_without_verify_the_proof_says_not_run(
    labelling: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = CompileJob(labelling, tmp_path / "no", recipe=INT8, verify=False).run()
    assert done.artifact.components["model"].proof["numeric"] == "not run"
    assert done.artifact.proof["labels"] == "not run"
    assert any("numeric proof not run (not asked for)" in n for n in done.notes)
    monkeypatch.setattr("vitrify.export.compile.NUMERIC_LIMIT", 1000)
    done = CompileJob(labelling, tmp_path / "large", recipe=INT8).run()
    assert any("numeric proof not run (needs about 0.0 GB)" in n for n in done.notes)


def damaged(source: Artifact, parts: Path, name: str, values: dict[str, float]) -> Callable[[Event], None]:
    """When the proof comes to the pipelines, tensors of the compiled component `name` are filled with these values.

    parts: the folder in which the artifact is made for OpenVINO, whose files hold each tensor's bytes as they were.
    """
    component = source.components[name]
    entries = read_header(component.root / component.weights[0].path)

    def report(event: Event) -> None:
        if event.stage == "compare pipelines":
            (root,) = parts.glob(".out.part-*")
            file = (root / component.graph).with_name("openvino_model.bin")
            data = file.read_bytes()
            for tensor, value in values.items():
                before = read_tensor(entries[tensor])
                assert data.count(before.tobytes()) == 1, tensor
                data = data.replace(before.tobytes(), np.full_like(before, value).tobytes())
            file.write_bytes(data)

    return report


NAN = {"conv_out.bias": np.nan}
BLACK = {"decoder.conv_out.weight": 0, "decoder.conv_out.bias": -1}
DAMAGES = [
    ("unet", NAN, r"^unet gives NaN or infinity at step 1 of 4\."),
    ("vae_decoder", BLACK, r"^vae_decoder draws one plain colour for "),
]


@pytest.mark.parametrize(("name", "values", "said"), DAMAGES, ids=["NaN", "black"])
def test_a_component_that_gives_nan_or_black_fails_the_proof_and_is_named(
    drawing: Artifact, tmp_path: Path, name: str, values: dict[str, float], said: str
) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    report = damaged(drawing, tmp_path, name, values)
    with pytest.raises(ProofFailed, match=said) as caught:
        CompileJob(drawing, tmp_path / "out", "openvino", verify=True, report=report).run()
    assert caught.value.exit_code == 3
    assert caught.value.fix == "Nothing was published. --keep-failed publishes it, marked."
    assert list(tmp_path.iterdir()) == []


def test_what_gives_nan_may_be_kept_and_is_marked(drawing: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    report = damaged(drawing, tmp_path, "unet", NAN)
    job = CompileJob(drawing, tmp_path / "out", "openvino", verify=True, keep_failed=True, report=report)
    done = job.run()
    made = done.artifact
    assert done.notes[-1] == f"FAILED: {made.proof['what']}"
    assert (made.proof["status"], made.proof["what"]) == ("failed", "unet gives NaN or infinity at step 1 of 4.")
    assert made.proof["images"] == "not run"
    assert made.components["unet"].proof["numeric"]["relative"] <= 1e-4, "what was found before is kept"
    assert Artifact.load(tmp_path / "out").proof == made.proof


def test_scores_that_are_nan_fail_the_proof(labelling: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    report = damaged(labelling, tmp_path, "model", {"classifier.bias": np.nan})
    with pytest.raises(ProofFailed, match=r"^model gives NaN scores"):
        CompileJob(labelling, tmp_path / "out", "openvino", verify=True, report=report).run()
    assert list(tmp_path.iterdir()) == []
