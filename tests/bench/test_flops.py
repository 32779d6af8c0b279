"""Counted work, against torch's own counter on the same models and against numbers worked out by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.bench.counting import call_flops
from vitrify.bench.flops import graph_flops
from vitrify.bench.spec import Spec
from vitrify.core.artifact import Artifact, Component
from vitrify.core.errors import BadArtifact, BadInput
from vitrify.core.tensors import DType, TensorSpec

onnx = pytest.importorskip("onnx", reason="needs vitrify[bench]")
from onnx import TensorProto, helper  # noqa: E402

Shape = Sequence[int | str]
FLOAT, INT8, UINT8, INT32 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32


@pytest.fixture
def component(tmp_path: Path) -> Callable[..., Component]:
    """A graph of the nodes given, written to disk; weights lie outside, in a file that is not there."""

    def make(
        nodes: Sequence[Any],
        inputs: Mapping[str, Shape],
        weights: Mapping[str, tuple[int, Shape]] | None = None,
        scalars: Mapping[str, Any] | None = None,
        opset: int = 23,
    ) -> Component:
        held = [onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in (scalars or {}).items()]
        for name, (kind, dims) in (weights or {}).items():
            tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
            tensor.external_data.add(key="location", value="weights.safetensors")
            held.append(tensor)
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
            [onnx.ValueInfoProto(name=nodes[-1].output[0])],
            held,
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "model.onnx")
        specs = {n: TensorSpec(DType.FLOAT32, tuple(s)) for n, s in inputs.items()}
        return Component("model", "onnx", "model.onnx", specs, {}, root=tmp_path)

    return make


def node(kind: str, inputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(), ["y"], name=f"the_{kind}", **attributes)


def test_a_convolution_by_hand(component: Callable[..., Component]) -> None:
    conv = node("Conv", "x w b", strides=[2, 2], pads=[1, 1, 1, 1])
    graph = component([conv], {"x": ["batch", 3, "height", "width"]}, {"w": (FLOAT, [8, 3, 3, 3]), "b": (FLOAT, [8])})
    # 16 x 12 pixels at stride 2 are 8 x 6; each of 8 channels sums 3 x 3 x 3 products
    assert graph_flops(graph, {"batch": 2, "height": 16, "width": 12}) == 2 * (2 * 8 * 8 * 6) * 27


def test_a_matrix_product_by_hand(component: Callable[..., Component]) -> None:
    graph = component([node("MatMul", "x w")], {"x": ["batch", "tokens", 64]}, {"w": (FLOAT, [64, 10])})
    assert graph_flops(graph, {"batch": 3, "tokens": 7}) == 2 * 3 * 7 * 64 * 10


SCALE, ZERO = {"s": np.float32(0.1)}, {"z": np.uint8(128), "zw": np.int8(0)}
QUANTIZE = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])


@pytest.mark.parametrize(
    ("nodes", "shape", "weights", "multiply_adds"),
    [
        ([node("Conv", "x w", group=4)], [1, 8, 5, 5], {"w": (FLOAT, [4, 2, 3, 3])}, 4 * 9 * 18),
        ([node("ConvTranspose", "x w", strides=[2, 2])], [1, 6, 5, 5], {"w": (FLOAT, [6, 4, 3, 3])}, 6 * 25 * 36),
        ([node("Gemm", "x w b", transB=1)], [5, 7], {"w": (FLOAT, [3, 7]), "b": (FLOAT, [3])}, 5 * 7 * 3),
        ([node("Gemm", "x w", transA=1)], [7, 5], {"w": (FLOAT, [7, 3])}, 5 * 7 * 3),
        ([node("Einsum", "x w", equation="bij,jk->bik")], [2, 5, 7], {"w": (FLOAT, [7, 3])}, 2 * 5 * 7 * 3),
        ([node("Einsum", "x", equation="ij->ji")], [5, 7], {}, 0),
        # 6 heads, K and V of 3 heads shared among them; Q is [batch, rows, heads * dim]
        (
            [node("Attention", "x k v", q_num_heads=6, kv_num_heads=3)],
            [2, 5, 24],
            {"k": (FLOAT, [2, 9, 12]), "v": (FLOAT, [2, 9, 12])},
            2 * 6 * 5 * 9 * (4 + 4),
        ),
        (
            [helper.make_node("Attention", ["x", "k", "v", "", "pk", "pv"], ["y", "kk", "vv"])],
            [2, 6, 5, 4],
            {n: (FLOAT, [2, 6, rows, 4]) for n, rows in (("k", 9), ("v", 9), ("pk", 2), ("pv", 2))},
            2 * 6 * 5 * 11 * (4 + 4),
        ),
        ([QUANTIZE, node("MatMulInteger", "q w z zw")], [5, 7], {"w": (INT8, [7, 3])}, 5 * 7 * 3),
        ([QUANTIZE, node("ConvInteger", "q w z")], [1, 2, 5, 5], {"w": (UINT8, [4, 2, 3, 3])}, 4 * 9 * 18),
        ([QUANTIZE, node("QLinearConv", "q s z w s zw s z")], [1, 2, 5, 5], {"w": (INT8, [4, 2, 3, 3])}, 4 * 9 * 18),
        ([QUANTIZE, node("QLinearMatMul", "q s z w s zw s z")], [5, 7], {"w": (INT8, [7, 3])}, 5 * 7 * 3),
        (
            [helper.make_node("DequantizeLinear", ["w", "s", "zw"], ["d"]), node("Gemm", "x d")],
            [5, 7],
            {"w": (INT8, [7, 3])},
            5 * 7 * 3,
        ),
        (
            [
                helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
                node("MatMulNBits", "g w sc", domain="com.microsoft", K=64, N=3, bits=4, block_size=32),
            ],
            [2, 5, 64],
            {"w": (UINT8, [3, 2, 16]), "sc": (FLOAT, [6])},
            2 * 5 * 64 * 3,
        ),
        ([node("Softmax", "x")], [5, 7], {}, 0),
    ],
    ids=lambda value: value[-1].op_type if isinstance(value, list) and hasattr(value[-1], "op_type") else None,
)
def test_every_operator_by_hand(
    component: Callable[..., Component], nodes: list[Any], shape: list[int], weights: Any, multiply_adds: int
) -> None:
    assert graph_flops(component(nodes, {"x": shape}, weights, SCALE | ZERO), {}) == 2 * multiply_adds


def test_shapes_that_are_computed_in_the_graph(component: Callable[..., Component]) -> None:
    """Rows cut out by a number that Shape, Squeeze and Range lead to, which onnx's inference does not follow."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1, end=2),
        helper.make_node("Squeeze", ["s"], ["n"]),
        helper.make_node("Range", ["zero", "n", "one"], ["rows"]),
        helper.make_node("Gather", ["table", "rows"], ["picked"]),
        helper.make_node("MatMul", ["picked", "w"], ["y"]),
    ]
    weights = {"table": (FLOAT, [77, 64]), "w": (FLOAT, [64, 5])}
    graph = component(nodes, {"x": ["batch", "tokens"]}, weights, {"zero": np.int64(0), "one": np.int64(1)})
    assert graph_flops(graph, {"batch": 3, "tokens": 20}) == 2 * 20 * 64 * 5


def test_what_cannot_be_counted_is_named(component: Callable[..., Component]) -> None:
    lstm = node("LSTM", "x w r", hidden_size=4)
    made = component([lstm], {"x": [3, 1, 2]}, {"w": (FLOAT, [1, 16, 2]), "r": (FLOAT, [1, 16, 4])})
    with pytest.raises(BadInput, match=r"node the_LSTM \(LSTM\) cannot be counted: the work of LSTM is not known"):
        graph_flops(made, {})
    made = component([node("FusedConv", "x", domain="com.microsoft")], {"x": [3, 1]})
    with pytest.raises(BadInput, match=r"the_FusedConv.*com\.microsoft\.FusedConv is not known"):
        graph_flops(made, {})
    chosen = helper.make_node("NonZero", ["x"], ["n"])
    cast = helper.make_node("Cast", ["n"], ["f"], to=FLOAT)
    made = component([chosen, cast, node("MatMul", "x f")], {"x": [2, 2]})
    with pytest.raises(BadInput, match=r"the_MatMul \(MatMul\) cannot be counted: the shape of 'y' is not known"):
        graph_flops(made, {})
    made = component([node("Einsum", "x w w", equation="ij,jk,kl->il")], {"x": [3, 3]}, {"w": (FLOAT, [3, 3])})
    with pytest.raises(BadInput, match=r"the work of Einsum 'ij,jk,kl->il' is not known"):
        graph_flops(made, {})
    body = helper.make_graph([node("MatMul", "x x")], "b", [], [helper.make_tensor_value_info("y", FLOAT, [3, 3])])
    chooses = node("If", "c", then_branch=body, else_branch=body)
    made = component([chooses], {"x": [3, 3]}, None, {"c": np.bool_(True)})
    with pytest.raises(BadInput, match=r"the_If .*If runs a graph of its own"):
        graph_flops(made, {})


def test_sizes_that_cannot_be(component: Callable[..., Component]) -> None:
    made = component([node("MatMul", "x w")], {"x": ["batch", 64]}, {"w": (FLOAT, [64, 10])})
    with pytest.raises(BadInput, match=r"batch has no size.*1 or more for batch"):
        graph_flops(made, {"tokens": 3})
    with pytest.raises(BadInput, match="batch is 0"):
        graph_flops(made, {"batch": 0})
    made = component([node("MatMul", "x w")], {"x": ["batch", "width"]}, {"w": (FLOAT, [64, 10])})
    with pytest.raises(BadInput, match=r"model\.onnx cannot be run at these sizes"):
        graph_flops(made, {"batch": 1, "width": 63})


def test_no_graph_to_read(component: Callable[..., Component], tmp_path: Path) -> None:
    made = component([node("Relu", "x")], {"x": [1]})
    with pytest.raises(BadInput, match=r"in the format openvino.*the work is the same"):
        graph_flops(replace(made, format="openvino"), {})
    made.graph_path.write_bytes(b"\xff" * 64)
    with pytest.raises(BadArtifact, match=r"model\.onnx does not load"):
        graph_flops(made, {})
    made.graph_path.unlink()
    with pytest.raises(BadArtifact, match=r"model\.onnx does not load"):
        graph_flops(made, {})


# the same models in torch, on the device meta: nothing is computed and no weights are held


def counted(module: Any, *arguments: Any) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        module(*arguments)
    return int(counter.get_total_flops())


def zeros(*shape: int, dtype: str = "float32") -> Any:
    import torch

    return torch.zeros(shape, device="meta", dtype=getattr(torch, dtype))


def diffusion_part(source: Path, name: str) -> Any:
    import diffusers
    import torch
    from diffusers.models.attention_processor import AttnProcessor

    with torch.device("meta"):
        module = getattr(diffusers, name)
        folder = source / ("unet" if name.startswith("UNet") else "vae")
        module = module.from_config(module.load_config(folder))
    module.set_attn_processor(AttnProcessor())  # in single products, which the counter sees whatever runs them
    return module.eval()


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 16, 16), (2, 24, 8)])
def test_unet_as_torch_counts_it(
    diffusion_artifact: Path, diffusion_source: Path, batch: int, height: int, width: int
) -> None:
    component = Artifact.load(diffusion_artifact).components["unet"]
    ours = graph_flops(component, {"batch": batch, "height": height, "width": width, "tokens": 77})
    unet = diffusion_part(diffusion_source, "UNet2DConditionModel")
    dim = int(component.inputs["encoder_hidden_states"].shape[-1])
    theirs = counted(unet, zeros(batch, 4, height, width), zeros(), zeros(batch, 77, dim))
    assert ours == theirs


@pytest.mark.parametrize("batch", [1, 3])
def test_vit_as_torch_counts_it(emotions_artifact: Path, emotions_source: Path, batch: int) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForImageClassification

    component = Artifact.load(emotions_artifact).components["model"]
    config = AutoConfig.from_pretrained(emotions_source)
    with torch.device("meta"):
        vit = AutoModelForImageClassification.from_config(config, attn_implementation="eager").eval()
    theirs = counted(vit, zeros(batch, 3, 224, 224))
    assert graph_flops(component, {"batch": batch}) == theirs


def test_a_whole_call_of_a_diffusion_pipeline(diffusion_artifact: Path, diffusion_source: Path) -> None:
    """Against torch's counts of the three models, each as often as `generate` runs it."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        config = CLIPTextConfig.from_pretrained(diffusion_source / "text_encoder")
        encoder = CLIPTextModel._from_config(config, attn_implementation="eager").eval()
    text = counted(encoder, zeros(1, 77, dtype="int64"))
    unet = diffusion_part(diffusion_source, "UNet2DConditionModel")
    one = counted(unet, zeros(1, 4, 16, 24), zeros(), zeros(1, 77, config.hidden_size))
    vae = diffusion_part(diffusion_source, "AutoencoderKL")
    decoded = counted(vae.decode, zeros(1, 4, 16, 24))

    artifact = Artifact.load(diffusion_artifact)
    spec = Spec("m", "m", "text2img", "onnx", "fp32", batch=3, width=96, height=64, steps=5, guidance=7.5)
    assert call_flops(artifact, spec) == 2 * text + 5 * 6 * one + 3 * decoded
    plain = replace(spec, guidance=1.0)
    assert call_flops(artifact, plain) == text + 5 * 3 * one + 3 * decoded
    # PNDM without its Runge-Kutta steps, as Stable Diffusion 1.5 has it, takes the second step twice
    pndm = dict(artifact.pipeline["scheduler"]) | {"_class_name": "PNDMScheduler", "skip_prk_steps": True}
    more = call_flops(replace(artifact, pipeline=artifact.pipeline | {"scheduler": pndm}), plain)
    assert more == text + 6 * 3 * one + 3 * decoded
    with pytest.raises(BadInput, match="does text2img, not classify"):
        call_flops(artifact, Spec("m", "m", "classify", "onnx", "fp32"))


def test_a_whole_call_of_a_classifier(emotions_artifact: Path) -> None:
    artifact = Artifact.load(emotions_artifact)
    spec = Spec("m", "m", "classify", "onnx", "fp32", batch=5)
    assert call_flops(artifact, spec) == graph_flops(artifact.components["model"], {"batch": 5})


def test_as_a_process(emotions_artifact: Path, python: Callable[..., Any], tmp_path: Path) -> None:
    spec = Spec("m", "m", "classify", "onnx", "fp32", batch=2)
    code = "import sys; from vitrify.bench.counting import main; sys.exit(main(sys.argv[1:]))"
    ran = python(code, emotions_artifact, json.dumps(spec.to_json()))
    assert int(ran.out) == call_flops(Artifact.load(emotions_artifact), spec)
    ran = python(code, tmp_path, json.dumps(spec.to_json()))
    assert (ran.code, ran.out) == (6, "")
    assert ran.err.startswith(f"error: {tmp_path} is not an artifact")


def test_weights_are_not_read(emotions_artifact: Path, tmp_path: Path) -> None:
    component = Artifact.load(emotions_artifact).components["model"]
    shutil.copy(component.graph_path, tmp_path / "model.onnx")
    alone = replace(component, graph="model.onnx", root=tmp_path)
    flops = graph_flops(component, {"batch": 1})
    assert graph_flops(alone, {"batch": 1}) == flops
    assert flops > 1e8


def test_other_names_for_the_symbols(emotions_artifact: Path) -> None:
    """As Optimum names them, with sizes that its graphs leave open."""
    artifact = Artifact.load(emotions_artifact)
    model = artifact.components["model"]
    names = TensorSpec(DType.FLOAT32, ("batch_size", "num_channels", "height", "width"))
    other = replace(artifact, components={"model": replace(model, inputs={"pixel_values": names})})
    spec = Spec("m", "m", "classify", "onnx", "fp32", batch=5)
    assert call_flops(other, spec) == call_flops(artifact, spec)
