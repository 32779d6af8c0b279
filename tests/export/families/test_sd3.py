"""What the exporter must get right for SD3: positions cut out for any size, and parts that only some models have."""

from __future__ import annotations

from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.export.families.sd3 import SD3, check_sd3

pytest.importorskip("torch", reason="needs vitrify[export]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")

pytestmark = pytest.mark.slow  # traces many graphs: minutes on an empty cache

SPEC = next(spec for spec in SD3 if spec.name == "transformer")
MEDIUM = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 16, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 40,
    "caption_projection_dim": 64, "pooled_projection_dim": 24, "pos_embed_max_size": 40,
}  # fmt: skip
MEDIUM_35 = MEDIUM | {"qk_norm": "rms_norm", "dual_attention_layers": [0]}
PARTS = {
    "transformer": MEDIUM,
    "vae_decoder": {"latent_channels": 16},
    "text_encoder": {"hidden_size": 16},
    "text_encoder_2": {"hidden_size": 24},
    "text_encoder_3": {"d_model": 40},
}


@pytest.mark.parametrize("config", [MEDIUM, MEDIUM_35], ids=["3", "3.5"])
def test_one_graph_takes_all_sizes(config: dict[str, Any]) -> None:
    pytest.importorskip("onnxruntime", reason="needs vitrify[onnx]")
    from vitrify.export.graph import graph_from_module, operators
    from vitrify.export.twin import prove_graph

    graph = graph_from_module(SPEC, config)
    held = {n: getattr(v.const_value, "location", None) for n, v in graph.graph.initializers.items()}
    assert held["pos_embed.pos_embed"] == "weights", "the table of positions is the checkpoint's"
    proof = prove_graph(SPEC, config, operators(graph))
    assert proof["relative"] < 2e-5
    assert len({(s["height"], s["width"], s["batch"]) for s in proof["shapes"]}) == 2


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"transformer": MEDIUM | {"in_channels": 32}}, "takes 32 channels, its VAE makes 16"),
        ({"text_encoder_3": {"d_model": 48}}, "states of 40 numbers; its CLIPs give 16 and 24 and its T5 48"),
        ({"text_encoder_2": {"hidden_size": 32}}, "its CLIPs give 16 and 32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any], what: str) -> None:
    check_sd3("it", PARTS)
    check_sd3("it", {n: c for n, c in PARTS.items() if n != "text_encoder_3"})
    with pytest.raises(BadInput, match=what):
        check_sd3("it", PARTS | changed)
