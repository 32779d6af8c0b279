"""A compilation from end to end: what it publishes runs and says how good it is; what fails leaves nothing."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadArtifact, BadInput, UsageError
from vitrify.core.progress import Event
from vitrify.export.compile import Compiled, CompileJob, compile_model
from vitrify.export.verify import verify_artifact
from vitrify.proof.quality import psnr
from vitrify.quant.recipes import recipe

pytest.importorskip("onnx_ir", reason="needs vitrify[export]")
pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")

INT8 = recipe("int8-weights")


def listing(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


FACE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).resize((224, 224))


def test_a_compiled_classifier_labels_as_its_source_does(labels: Compiled, labelling: Artifact) -> None:
    answers = []
    for root in (labelling.root, labels.artifact.root):
        pipeline = vitrify.load(root, "cpu")
        answers.append(pipeline.classify([FACE], top_k=None)[0])
        placed = pipeline.placement["model"]
        pipeline.close()
    assert placed["runtime"] == "onnx"
    assert answers[0][0]["label"] == answers[1][0]["label"]
    scores = [{r["label"]: r["score"] for r in a} for a in answers]
    assert 0 < max(abs(scores[0][k] - scores[1][k]) for k in scores[0]) < 0.05


def test_a_compiled_pipeline_draws_what_its_source_draws(pictures: Compiled, drawing: Artifact) -> None:
    drawn = []
    for root in (drawing.root, pictures.artifact.root):
        pipeline = vitrify.load(root, "cpu")
        drawn.append(np.asarray(pipeline.generate("a red apple", steps=4, seed=3, guidance=3).images[0]))
        placed = pipeline.placement
        pipeline.close()
    assert {p["runtime"] for p in placed.values()} == {"openvino"}
    assert psnr(*drawn) > 35


def test_its_manifest_tells_what_it_was_made_from(pictures: Compiled, drawing: Artifact) -> None:
    made = pictures.artifact
    assert made.id != drawing.id
    assert made.model == drawing.model
    assert made.pipeline == drawing.pipeline
    source = shlex.quote(drawing.model["source"])
    assert made.built["command"] == f"vitrify compile {source} --to openvino --quant int8-weights"
    assert made.built["from"] == {"id": drawing.id, "command": drawing.built.get("command")}
    assert made.built["versions"]["openvino"]
    recipes = {n: c.precision["recipe"] for n, c in made.components.items()}
    assert recipes == {
        "text_encoder": "int8-weights", "unet": "int8-weights", "vae_decoder": "fp32", "vae_encoder": "fp32",
    }  # fmt: skip


def test_its_command_names_the_commit_and_the_variant(labelling: Artifact, tmp_path: Path) -> None:
    fetched = replace(labelling, model=labelling.model | {"source": "a/b", "revision": "1" * 40, "variant": "fp16"})
    made = CompileJob(fetched, tmp_path / "out", recipe=INT8, verify=False).run().artifact
    said = f"--quant int8-weights --revision {'1' * 40} --variant fp16"
    assert made.built["command"] == f"vitrify compile a/b --to onnx {said}"


def test_every_file_is_there_once_and_has_its_hash(pictures: Compiled, drawing: Artifact) -> None:
    made = pictures.artifact
    assert made.unhashed() == []
    assert {f.path for f in made.recorded()} == listing(made.root) - {"artifact.json"}
    weights = {w.path for c in drawing.components.values() for w in c.weights}
    graphs = {c.graph for c in drawing.components.values()}
    kept = listing(drawing.root) - weights - graphs
    ours = {f"{n}/openvino_model.{e}" for n in made.components for e in ("xml", "bin")}
    if importlib.util.find_spec("openvino_tokenizers"):
        ours |= {f"tokenizer/openvino_tokenizer.{e}" for e in ("xml", "bin")}
    kept = {name for name in kept if not name.startswith("proof/")}
    drawn = {one[side] for one in made.proof["images"]["drawn"] for side in ("reference", "artifact")}
    assert listing(made.root) == kept | ours | drawn
    Artifact.load(made.root, checksums=True)
    assert sorted(p.name for p in made.root.parent.iterdir()) == ["out"], "nothing lies beside it"


def test_a_classifier_for_openvino_lies_where_other_tools_look_for_it(labelling: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    made = CompileJob(labelling, tmp_path / "out", "openvino", INT8, verify=False).run().artifact
    assert {"openvino_model.xml", "openvino_model.bin", "config.json"} <= listing(made.root)
    pipeline = vitrify.load(made.root, "cpu")
    assert len(pipeline.classify([FACE])[0]) == 5
    pipeline.close()


def test_without_a_recipe_openvino_gets_the_same_numbers(labelling: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs vitrify[openvino]")
    made = CompileJob(labelling, tmp_path / "out", "openvino", verify=True).run().artifact
    assert made.components["model"].proof["numeric"]["relative"] <= 1e-4
    assert made.proof["labels"]["max_score_difference"] <= 1e-3
    assert made.components["model"].precision == labelling.components["model"].precision


def test_a_second_build_is_the_same(labels: Compiled, labelling: Artifact, tmp_path: Path) -> None:
    made = CompileJob(labelling, tmp_path / "out", recipe=INT8, verify=False).run().artifact
    assert made.id == labels.artifact.id
    other = CompileJob(labelling, tmp_path / "other", recipe=recipe("int4-weights"), verify=False).run().artifact
    assert other.id != made.id


@pytest.mark.parametrize("kind", ["weights", "graph", "others"])
@pytest.mark.parametrize("name", ["labels", "pictures"])
def test_a_changed_byte_is_seen(name: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source = request.getfixturevalue(name).artifact
    root = shutil.copytree(source.root, tmp_path / "copy")
    component = source.components["model" if name == "labels" else "unet"]
    path = root / {"weights": component.weights[0].path, "graph": component.graph, "others": "config.json"}[kind]
    if not path.exists():
        path = root / "unet/config.json"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    Artifact.load(root)
    said = rf"{path.relative_to(root)} is not the file that was built"
    with pytest.raises(BadArtifact, match=said):
        Artifact.load(root, checksums=True)
    with pytest.raises(BadArtifact, match=said):
        verify_artifact(root, str(source.root))


def test_inspect_and_verify_end_with_the_code_of_a_bad_artifact(
    vitrify: Callable[..., Any], labels: Compiled, labelling: Artifact, tmp_path: Path
) -> None:
    root = shutil.copytree(labels.artifact.root, tmp_path / "copy")
    path = root / labels.artifact.components["model"].weights[0].path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for command in (["inspect", root, "--checksums"], ["verify", root, "--against", labelling.root]):
        done = vitrify(*command, "--json")
        assert (done.code, done.error["code"]) == (6, "bad_artifact"), done.err
        assert "model.safetensors" in done.error["what"]


@pytest.mark.parametrize(
    ("to", "id", "what"),
    [
        ("onnx", "nf4-weights", "no nf4 type"),
        ("tensorrt-rtx", "nf4-weights", "no nf4 type"),
        ("openvino", "int8-dynamic", "does not run on openvino"),
        ("tensorrt", "int8-dynamic", "does not run on tensorrt"),
        ("tensorrt-rtx", "int4-weights:symmetric=no", "no zero points"),
        ("onnx", "fp32", "what it is made from"),
        ("coreml", "int8-weights", "no target 'coreml'"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    drawing: Artifact, tmp_path: Path, to: str, id: str, what: str
) -> None:
    events: list[Event] = []
    with pytest.raises(UsageError, match=what):
        CompileJob(drawing, tmp_path / "out", to, recipe(id), report=events.append).run()
    assert events == []
    assert list(tmp_path.iterdir()) == []


def test_what_is_compiled_already_is_refused(pictures: Compiled, labels: Compiled, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"is compiled already \(openvino\)"):
        CompileJob(pictures.artifact, tmp_path / "out", recipe=INT8).run()
    for id in ("int4-weights", "int8-dynamic"):
        with pytest.raises(BadInput, match="model is quantized already"):
            CompileJob(labels.artifact, tmp_path / "out", recipe=recipe(id)).run()
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_never_the_source_nor_in_it(labelling: Artifact, tmp_path: Path) -> None:
    root = shutil.copytree(labelling.root, tmp_path / "source")
    source, before = Artifact.load(root), listing(root)
    (tmp_path / "link").symlink_to("source")
    for target in (root, tmp_path / "link"):
        with pytest.raises(UsageError, match="would replace the one that it is made from"):
            CompileJob(source, target, recipe=INT8, replace=True, verify=False).run()
    for target in (root / "int8", tmp_path / "link/deep/int8"):
        with pytest.raises(UsageError, match="would lie in the one that it is made from"):
            CompileJob(source, target, recipe=INT8, verify=False).run()
    assert listing(root) == before


def test_a_target_that_is_there_needs_a_word(labelling: Artifact, tmp_path: Path) -> None:
    first = CompileJob(labelling, tmp_path / "out", recipe=INT8, verify=False).run().artifact
    with pytest.raises(BadInput, match=r"exists.*--force"):
        CompileJob(labelling, tmp_path / "out", recipe=recipe("int4-weights"), verify=False).run()
    assert Artifact.load(tmp_path / "out", checksums=True) == first
    job = CompileJob(labelling, tmp_path / "out", recipe=recipe("int4-weights"), verify=False, replace=True)
    assert job.run().artifact.components["model"].precision["weights"] == "int4"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="is not an artifact"):
        CompileJob(labelling, tmp_path / "mine", recipe=INT8, verify=False, replace=True).run()


def test_calibration_without_anything_to_see_is_refused(labelling: Artifact, drawing: Artifact, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"needs pictures.*--calibration"):
        CompileJob(labelling, tmp_path / "out", recipe=recipe("int8-static")).run()
    (tmp_path / "prompts.txt").write_text("\n\n")
    with pytest.raises(BadInput, match="holds no prompt"):
        CompileJob(drawing, tmp_path / "out", recipe=recipe("int8-static"), calibration=tmp_path / "prompts.txt").run()
    assert listing(tmp_path) == {"prompts.txt"}


def test_an_artifact_with_a_weight_that_is_no_number_is_refused(labelling: Artifact, tmp_path: Path) -> None:
    root = shutil.copytree(labelling.root, tmp_path / "source")
    path = root / labelling.components["model"].weights[0].path
    data = bytearray(path.read_bytes())
    from vitrify.core.safetensors_header import read_header

    entry = read_header(path)["vit.encoder.layer.0.attention.attention.query.weight"]
    data[entry.offset : entry.offset + 2] = np.array([np.nan], np.float16).tobytes()
    path.write_bytes(data)
    for id in ("int8-weights", "int8-dynamic"):
        with pytest.raises(BadInput, match="NaN"):
            CompileJob(Artifact.load(root), tmp_path / "out", recipe=recipe(id), verify=False).run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_from_python_in_one_call(emotions_artifact: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    made = compile_model(
        emotions_artifact, tmp_path / "out", quant="int4-weights:group=32", verify=False, report=events.append
    )
    assert made.components["model"].precision["recipe"] == "int4-weights:group=32"
    assert "compile model" in {e.stage for e in events}
    assert "quantize model" in {e.stage for e in events}


@pytest.fixture
def under_way(environment: dict[str, str], diffusion_artifact: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A compilation that has written weights and now compares."""
    with subprocess.Popen(
        [sys.executable, "-m", "vitrify", "compile", diffusion_artifact, "--quant", "int8-weights", "--verify", "-o",
         tmp_path / "out", "--json"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        end = time.monotonic() + 120
        while not any((p / "unet/model.onnx").exists() for p in tmp_path.glob(".out.part-*")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.002)
        yield process
        process.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_a_killed_compilation_leaves_no_artifact_and_the_next_one_cleans_up(
    under_way: subprocess.Popen[str], labelling: Artifact, tmp_path: Path
) -> None:
    under_way.kill()
    under_way.communicate()
    assert not (tmp_path / "out").exists()
    assert len(list(tmp_path.glob(".out.part-*"))) == 1
    CompileJob(labelling, tmp_path / "out", recipe=INT8, verify=False).run()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_ctrl_c_ends_it_and_leaves_nothing(under_way: subprocess.Popen[str], tmp_path: Path) -> None:
    under_way.send_signal(signal.SIGINT)
    out, err = under_way.communicate(timeout=60)
    assert under_way.returncode == 130, err
    assert json.loads(out)["error"]["code"] == "cancelled"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("to", "size"), [("onnx", 65_536), ("onnx", 1_000_000), ("openvino", 1_500_000)])
def test_a_full_disk_is_an_error_that_leaves_nothing(
    vitrify: Callable[..., Any], emotions_artifact: Path, small_disk: Callable[[int], Path], to: str, size: int
) -> None:
    disk = small_disk(size)
    done = vitrify(
        "compile", emotions_artifact, "--to", to, "--quant", "int8-weights", "--no-verify", "-o", disk / "out", "--json"
    )
    assert "Traceback" not in done.err, done.err
    assert (done.code, done.error["code"]) == (2, "disk"), done.err
    assert "full" in done.error["what"]
    assert os.listdir(disk) == []
