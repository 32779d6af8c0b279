"""Folders without a manifest, in Optimum's layout, open and run; one that is damaged is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.artifact import MANIFEST, Artifact, is_artifact
from vitrify.core.errors import BadArtifact, BadInput
from vitrify.pipelines.foreign import is_foreign
from vitrify.pipelines.load import open_artifact


@pytest.fixture
def diffusion(diffusion_artifact: Path, tmp_path: Path) -> Path:
    return stripped(diffusion_artifact, tmp_path / "diffusion")


@pytest.fixture
def emotions(emotions_artifact: Path, tmp_path: Path) -> Path:
    return stripped(emotions_artifact, tmp_path / "emotions")


def stripped(artifact: Path, target: Path) -> Path:
    shutil.copytree(artifact, target)
    (target / MANIFEST).unlink()
    return target


def test_it_is_recognized_by_its_layout(diffusion: Path, emotions: Path, emotions_source: Path) -> None:
    assert [is_foreign(diffusion), is_foreign(emotions)] == [True, True]
    assert [is_artifact(diffusion), is_foreign(emotions_source)] == [False, False]


def test_it_draws_the_same_picture_and_claims_no_proof(diffusion: Path, diffusion_artifact: Path) -> None:
    opened = open_artifact(diffusion)
    assert {str(c.proof[k]) for c in opened.components.values() for k in ("graph", "weights", "numeric")} == {"not run"}
    assert opened.proof["images"] == "not run"
    assert set(opened.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert opened.model["architecture"] == "StableDiffusionPipeline"
    drawn = []
    for one in (opened, diffusion_artifact):
        pipeline = vitrify.load(one, "cpu")
        drawn.append(np.asarray(pipeline.generate("a blue car", steps=5, seed=4, width=96, height=64).images[0]))
        pipeline.close()
    np.testing.assert_array_equal(*drawn)
    assert not (diffusion / MANIFEST).exists(), "nothing is written into a folder that is not ours"


def test_it_gives_the_same_labels(emotions: Path, emotions_artifact: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    answers = []
    for one in (emotions, emotions_artifact):
        pipeline = vitrify.load(one, "cpu")
        answers.append(pipeline.classify([picture], top_k=None))
        pipeline.close()
    assert answers[0] == answers[1]


def test_the_command_line_takes_it(vitrify: Callable[..., Any], emotions: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), (240, 200, 30)).save(tmp_path / "one.png")
    labels = vitrify("classify", emotions, tmp_path / "one.png", "--json")
    assert labels.code == 0, labels.err
    assert len(labels.json["results"][0]["labels"]) == 5
    seen = vitrify("inspect", emotions, "--json")
    assert seen.code == 0, seen.err
    assert seen.json["components"]["model"]["proof"] == {"graph": "not run", "weights": "not run", "numeric": "not run"}


def test_it_can_be_verified_against_the_source(
    vitrify: Callable[..., Any], emotions: Path, emotions_source: Path
) -> None:
    done = vitrify("verify", emotions, "--against", emotions_source, "--json")
    assert done.code == 0, done.err
    assert done.json["components"]["model"]["numeric"]["relative"] <= 1e-4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.onnx", b"not a graph"),
        ("model.onnx", b""),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("preprocessor_config.json", None),
        ("model.safetensors", None),
        ("model.safetensors", b"short"),
    ],
)
def test_a_damaged_one_is_refused(
    vitrify: Callable[..., Any], emotions: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    (emotions / name).unlink()
    if content is not None:
        (emotions / name).write_bytes(content)
    with pytest.raises(BadArtifact):
        vitrify_load(emotions)
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    done = vitrify("classify", emotions, tmp_path / "one.png", "--json")
    assert (done.code, done.error["code"]) == (6, "bad_artifact"), done.err
    assert "Traceback" not in done.err


def vitrify_load(folder: Path) -> Any:
    return vitrify.load(folder, "cpu")


def test_a_config_that_lacks_what_is_needed_is_refused(diffusion: Path) -> None:
    config = json.loads((diffusion / "unet/config.json").read_text())
    del config["block_out_channels"]
    (diffusion / "unet/config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="block_out_channels"):
        open_artifact(diffusion)


# Precision: read from the graph, for the folder does not say it.


def graph_of(folder: Path, passed: str, stored: str, *, beside: bool) -> Path:
    """A classifier of 7 labels: pixels are averaged, then multiplied by weights that are `stored` in that type."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to build a graph")
    helper, types = onnx.helper, {"float32": 1, "float16": 10, "int8": 3}
    float_type = types[passed]
    values = np.arange(3 * 7).reshape(3, 7).astype(stored)
    weights = onnx.numpy_helper.from_array(values, "weights")
    nodes = [helper.make_node("ReduceMean", ["pixel_values"], ["mean"], axes=[2, 3], keepdims=0)]
    matrix, mean, product = "weights", "mean", "logits"
    initializers = [weights]
    if stored == "int8":
        initializers.append(onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
        nodes.append(helper.make_node("DequantizeLinear", ["weights", "scale"], ["matrix"]))
        matrix = "matrix"
    elif stored != passed:  # floats outside, halves inside, as converters that keep the inputs' types write it
        nodes.append(helper.make_node("Cast", ["mean"], ["half"], to=types[stored]))
        mean, product = "half", "product"
    nodes.append(helper.make_node("MatMul", [mean, matrix], [product]))
    if product != "logits":
        nodes.append(helper.make_node("Cast", [product], ["logits"], to=float_type))
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("pixel_values", float_type, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", float_type, ["batch", 7])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for old in (*folder.glob("*.onnx*"), *folder.glob("*.safetensors")):
        old.unlink()
    onnx.save_model(
        model, folder / "model.onnx", save_as_external_data=beside, location="model.onnx_data", size_threshold=0
    )
    return folder


@pytest.mark.parametrize(
    ("passed", "stored", "beside", "expected"),
    [
        ("float32", "float32", False, ("fp32", "float32", "float32")),
        ("float16", "float16", False, ("fp16", "float16", "float16")),
        ("float16", "float16", True, ("fp16", "float16", "float16")),
        ("float32", "float16", True, ("fp16", "float16", "float16")),
        ("float32", "int8", True, (None, "int8", "float32")),
    ],
)
def test_the_precision_is_that_of_the_graph(
    emotions: Path, passed: str, stored: str, beside: bool, expected: tuple[str | None, str, str]
) -> None:
    opened = open_artifact(graph_of(emotions, passed, stored, beside=beside))
    precision = opened.components["model"].precision
    assert (precision["recipe"], precision["weights"], precision["activations"]) == expected
    assert opened.recipe == (expected[0] or "int8"), "by the weights, where the folder names no recipe"
    pipeline: Any = vitrify.load(opened, "cpu")
    result = pipeline.run([Image.new("RGB", (30, 30), (250, 10, 10))])
    assert result.placement["model"]["precision"] == expected[2]
    assert len(result.answers[0]) == 5
    pipeline.close()


# OpenVINO: the layout of Optimum Intel.


def as_ir(artifact: Path, target: Path, *, half: bool = False, batch: int | None = None) -> Path:
    """The folder with an IR in the place of each ONNX graph, as `optimum-cli export openvino` writes it."""
    ov = pytest.importorskip("openvino", reason="needs the extra openvino")
    shutil.copytree(artifact, target)
    for graph in sorted(target.rglob("model.onnx")):
        model = ov.convert_model(graph)
        if batch is not None:
            model.reshape({p: [batch, *list(p.partial_shape)[1:]] for p in model.inputs})
        ov.save_model(model, graph.with_name("openvino_model.xml"), compress_to_fp16=half)
        graph.unlink()
    for file in [*target.rglob("*.safetensors"), target / MANIFEST]:
        file.unlink()
    return target


def test_a_diffusion_folder_of_openvino_draws_the_same(diffusion_artifact: Path, tmp_path: Path) -> None:
    folder = as_ir(diffusion_artifact, tmp_path / "ir")
    assert is_foreign(folder)
    opened = open_artifact(folder)
    assert set(opened.components) == {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    unet = opened.components["unet"]
    assert (unet.format, unet.graph) == ("openvino", "unet/openvino_model.xml")
    assert [w.path for w in unet.weights] == ["unet/openvino_model.bin"]
    assert set(unet.inputs) == {"sample", "timestep", "encoder_hidden_states"}
    assert set(unet.outputs) == {"out_sample"}
    drawn = []
    for one in (opened, diffusion_artifact):
        pipeline: Any = vitrify.load(one, "cpu")
        result = pipeline.generate("a blue car", steps=5, seed=4, width=96, height=64)
        drawn.append(np.asarray(result.images[0]).astype(int))
        pipeline.close()
    assert drawn[1].std() > 10
    assert np.abs(drawn[0] - drawn[1]).max() <= 2


@pytest.mark.parametrize(
    ("half", "expected"), [(False, ("fp32", "float32", "float32")), (True, (None, "float16", "float32"))]
)
def test_a_classifier_of_openvino_gives_the_same_labels(
    emotions_artifact: Path, tmp_path: Path, half: bool, expected: tuple[str | None, str, str]
) -> None:
    folder = as_ir(emotions_artifact, tmp_path / "ir", half=half, batch=1)
    opened = open_artifact(folder)
    model = opened.components["model"]
    assert model.inputs["pixel_values"].shape == (1, 3, 224, 224), "static sizes stay numbers"
    assert (model.precision["recipe"], model.precision["weights"], model.precision["activations"]) == expected
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    answers = []
    for one in (opened, Artifact.load(emotions_artifact)):
        pipeline: Any = vitrify.load(one, "cpu")
        answers.append({x["label"]: x["score"] for x in pipeline.classify([picture], top_k=None)[0]})
        pipeline.close()
    assert answers[0] == pytest.approx(answers[1], abs=1e-3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("openvino_model.bin", None),
        ("openvino_model.xml", b"<net"),
        ("openvino_model.xml", b""),
        ("config.json", b"[]"),
    ],
)
def test_a_damaged_folder_of_openvino_is_refused(
    emotions_artifact: Path, tmp_path: Path, name: str, content: bytes | None
) -> None:
    folder = as_ir(emotions_artifact, tmp_path / "ir")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(BadArtifact):
        vitrify_load(folder)
