"""A hub id as the source of an export: it is verified at the commit and in the variant that were exported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, ProofFailed
from vitrify.export.job import export_model
from vitrify.export.verify import verify_artifact

transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")
huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs vitrify[export]")

COMMIT = "1" * 40
LABELS = ("angry", "happy", "sad")


def vit_weights() -> bytes:
    """A small ViT with three labels and random weights."""
    from safetensors.torch import save as save_torch

    made = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    return bytes(save_torch(transformers.ViTForImageClassification(made).state_dict(), {"format": "pt"}))


@pytest.fixture
def this_hub(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The hub and the cache that are used where nothing else is said."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.repos["a/faces"] = small_classifier(hub)
    return hub


def small_classifier(hub: Any) -> dict[str, bytes]:
    """A ViT that can be exported: its weights also as a variant, which is another model."""
    made = json.loads(hub.config())
    made |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    made |= {"image_size": 8, "patch_size": 4, "id2label": {str(i): label for i, label in enumerate(LABELS)}}
    return {
        "config.json": json.dumps(made).encode(),
        "preprocessor_config.json": json.dumps({"size": {"height": 8, "width": 8}}).encode(),
        "model.safetensors": vit_weights(),
        "model.other.safetensors": vit_weights(),
    }


def test_an_artifact_of_a_hub_id_is_verified_at_its_revision_and_variant(
    this_hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_model("a/faces", tmp_path / "out", variant="other", verify=False)
    assert artifact.model["source"] == "a/faces"
    assert (artifact.model["revision"], artifact.model["variant"]) == (COMMIT, "other")
    assert artifact.built["command"] == f"vitrify export a/faces --revision {COMMIT} --variant other --no-verify"
    # the hub goes on: another model now, under the branch that was exported
    this_hub.commits |= {"main": "3" * 40, "v1": COMMIT}
    (tmp_path / "elsewhere/a/faces").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # a folder of that name is not what was exported
    for offline in (True, None):
        this_hub.asked.clear()
        proved = verify_artifact(tmp_path / "out", offline=offline)
        assert proved.components["model"].proof["numeric"]["relative"] <= 1e-4
        assert bool(this_hub.asked) is (offline is None)
    assert Artifact.load(tmp_path / "out").components["model"].proof == proved.components["model"].proof
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProofFailed, match="Weight "):
        verify_artifact(tmp_path / "out", "a/faces", revision=COMMIT)  # the plain variant has other weights
    verify_artifact(tmp_path / "out", "a/faces", revision=COMMIT, variant="other")


def test_a_hub_id_that_is_gone_says_what_was_tried(this_hub: Any, tmp_path: Path) -> None:
    export_model("a/faces", tmp_path / "out", verify=False)
    del this_hub.repos["a/faces"]
    with pytest.raises(BadInput, match=rf"a/faces at revision {COMMIT} on the hub, could not be had\..*--against"):
        verify_artifact(tmp_path / "out")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(BadInput, match=r"is not in the cache.*Run it once online.*--against"):
        verify_artifact(tmp_path / "out", offline=True)
