"""Without openvino-tokenizers an artifact is whole, and one note says who cannot open it.

With it, see tests/optimum/test_openvino_peers.py.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from vitrify.core.artifact import Artifact
from vitrify.export.compile import CompileJob
from vitrify.export.ov_tokenizer import write_ov_tokenizers

pytest.importorskip("openvino", reason="needs vitrify[openvino]")

without = pytest.mark.skipif(
    importlib.util.find_spec("openvino_tokenizers") is not None, reason="needs openvino-tokenizers not installed"
)


@without
def test_one_note_says_what_is_missing_and_how_to_mend_it(diffusion_artifact: Path, tmp_path: Path) -> None:
    done = CompileJob(Artifact.load(diffusion_artifact), tmp_path / "out", "openvino", verify=False).run()
    (note,) = [note for note in done.notes if "GenAI" in note]
    assert note == (
        "vitrify runs it; OpenVINO GenAI will not open the folder: it needs openvino-tokenizers; "
        'pip install "vitrify[genai]", then compile again'
    )
    assert not list(done.artifact.root.rglob("openvino_tokenizer*"))


@without
@pytest.mark.parametrize("to", ["openvino", "onnx"])
def test_what_genai_does_not_open_anyway_gets_no_note(to: str, emotions_artifact: Path, tmp_path: Path) -> None:
    from vitrify.quant.recipes import recipe

    job = CompileJob(Artifact.load(emotions_artifact), tmp_path / "out", to, recipe("int8-weights"), verify=False)
    assert not any("GenAI" in note for note in job.run().notes)


@without
def test_those_of_the_source_do_not_stay_where_none_are_made(diffusion_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(diffusion_artifact / "tokenizer", tmp_path / "tokenizer")
    for ending in ("xml", "bin"):
        (tmp_path / f"tokenizer/openvino_tokenizer.{ending}").write_bytes(b"of other tokens")
    assert len(write_ov_tokenizers(tmp_path)) == 1
    assert not list(tmp_path.rglob("openvino_tokenizer*"))


def test_a_folder_without_a_tokenizer_is_left_alone(tmp_path: Path) -> None:
    assert write_ov_tokenizers(tmp_path) == []
    assert not list(tmp_path.iterdir())
