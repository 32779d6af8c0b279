"""What the exporter must get right for Flux: rotary positions in float32, dev's guidance, one graph for all sizes."""

from __future__ import annotations

from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.export.families.flux import FLUX, check_flux

pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")

pytestmark = pytest.mark.slow  # traces many graphs: minutes on an empty cache

SPEC = next(spec for spec in FLUX if spec.name == "transformer")
SCHNELL = {
    "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 1,
    "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 40,
    "pooled_projection_dim": 24, "guidance_embeds": False, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip
DEV = SCHNELL | {"guidance_embeds": True}


@pytest.mark.parametrize("config", [DEV, SCHNELL], ids=["dev", "schnell"])
def test_one_graph_takes_all_sizes_and_holds_no_float64(config: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    import onnx_ir as ir

    from vitrify.export.graph import graph_from_module, operators
    from vitrify.export.twin import prove_graph

    graph = graph_from_module(SPEC, config)
    assert ("guidance" in [v.name for v in graph.graph.inputs]) == config["guidance_embeds"]
    values = [*graph.graph.initializers.values(), *(out for node in graph.graph for out in node.outputs)]
    assert ir.DataType.DOUBLE not in {value.dtype for value in values}
    assert {"Sin", "Cos"} <= {node.op_type for node in graph.graph}, "positions are computed in the graph"
    proof = prove_graph(SPEC, config, operators(graph))  # beside diffusers' float64, up to position 255
    assert proof["relative"] < 5e-5


def test_transformers_that_see_other_things_than_latents_are_refused() -> None:
    vae = {"latent_channels": 16, "block_out_channels": [8, 8, 8, 8]}
    parts = {"transformer": DEV, "vae_decoder": vae}
    check_flux("it", parts)
    check_flux("it", parts | {"transformer": DEV | {"in_channels": 384}})
    with pytest.raises(BadInput, match="takes 128 channels, its VAE makes 16, 4 to a token"):
        check_flux("it", parts | {"transformer": DEV | {"in_channels": 128}})
