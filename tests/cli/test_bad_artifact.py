"""Artifacts that are damaged, unsafe or of another version: refused before anything of them is trusted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

Refuses = Callable[..., Any]


def test_a_missing_artifact(at: Any, refuses: Refuses) -> None:
    refuses(["inspect", at.tmp / "nothing"], 2, "bad_input", "does not exist")


def test_a_manifest_that_leads_out(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    shutil.copy(folder / "model.safetensors", at.tmp / "elsewhere.safetensors")
    at.edit(
        folder / "artifact.json",
        lambda d: d["components"]["model"]["weights"][0].update(path="../elsewhere.safetensors"),
    )
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "outside")


def test_a_link_that_leads_out(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    (folder / "model.safetensors").rename(at.tmp / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(at.tmp / "elsewhere.safetensors")
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "outside")


def test_a_manifest_that_names_a_pickle(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    (folder / "model.bin").write_bytes(b"\x80\x04.")
    at.edit(folder / "artifact.json", lambda d: d["components"]["model"]["weights"][0].update(path="model.bin"))
    refuses(["inspect", folder], 6, "bad_artifact", "pickle", "safetensors")


def test_an_artifact_of_a_newer_version(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    at.edit(folder / "artifact.json", lambda d: d.update(schema=99))
    refuses(["inspect", folder], 6, "bad_artifact", "schema", "upgrade")


def test_a_manifest_that_is_no_json(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    (folder / "artifact.json").write_text("{")
    refuses(["inspect", folder], 6, "bad_artifact", "artifact.json")


def test_an_artifact_without_its_weights(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    (folder / "model.safetensors").unlink()
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "missing")


def test_an_artifact_whose_weights_are_cut(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    os.truncate(folder / "model.safetensors", 5000)
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "bytes")


def test_an_artifact_whose_graph_is_damaged(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    graph = folder / "model.onnx"
    graph.write_bytes(b"\x00" * graph.stat().st_size)
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "not load")


def test_an_artifact_whose_graph_is_cut(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    os.truncate(folder / "model.onnx", 5000)
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "model.onnx has 5000 bytes")


def test_a_config_that_was_edited(at: Any, refuses: Refuses) -> None:
    path = at.copy(at.labelling) / "preprocessor_config.json"
    path.write_text(path.read_text().replace("0.5", "0.4"))
    refuses(["verify", path.parent], 6, "bad_artifact", "preprocessor_config.json is not the file that was built")


def test_a_wrong_hash(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    at.edit(folder / "artifact.json", lambda d: d["components"]["model"]["weights"][0].update(sha256="0" * 64))
    refuses(["inspect", folder, "--checksums"], 6, "bad_artifact", "sha256 differs")


def test_an_unknown_family(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    at.edit(folder / "artifact.json", lambda d: d["pipeline"].update(family="music"))
    refuses(["classify", folder, at.picture], 6, "bad_artifact", "family 'music'", "upgrade")


def test_a_source_that_is_gone(at: Any, refuses: Refuses) -> None:
    folder = at.copy(at.labelling)
    at.edit(folder / "artifact.json", lambda d: d["model"].update(source=str(at.tmp / "gone")))
    refuses(["verify", folder], 2, "bad_input", "source", "--against")


def test_a_reference_of_another_kind(at: Any, refuses: Refuses) -> None:
    refuses(["verify", at.copy(at.labelling), "--against", at.drawing], 2, "bad_input", "another kind of model")
