"""Graphs of full-size components, which hold no weights: the memory that tracing one needs is the graph's."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from .sana_configs import GEMMA_2B, SANA_1600M

pytestmark = pytest.mark.slow

LIMIT = 1_500_000_000  # bytes of resident memory, the libraries among them
# of stabilityai/stable-diffusion-xl-base-1.0: 2.6 billion parameters
SDXL_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "layers_per_block": 2, "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
# of black-forest-labs/FLUX.1-dev, of its T5, and of stabilityai/stable-diffusion-3-medium
FLUX: dict[str, Any] = {
    "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 19,
    "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
T5_XXL: dict[str, Any] = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu", "is_gated_act": True, "dense_act_fn": "gelu_new",
    "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "tie_word_embeddings": False,
}  # fmt: skip
SD3: dict[str, Any] = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16,
    "num_layers": 24, "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "caption_projection_dim": 1536, "pooled_projection_dim": 2048, "pos_embed_max_size": 192,
}  # fmt: skip
# (family, component) -> config, and the number of parameters
MODELS = {
    ("sdxl", "unet"): (SDXL_UNET, 2_567_463_684),
    ("flux", "transformer"): (FLUX, 11_901_408_320),
    ("flux", "text_encoder_2"): (T5_XXL, 4_762_310_656),
    ("sd3", "transformer"): (SD3, 2_028_328_000 + 192 * 192 * 1536),  # the table of positions is a buffer
    ("sana", "transformer"): (SANA_1600M, 1_604_462_752),
    ("sana", "text_encoder"): (GEMMA_2B, 2_614_341_888),
}

CHILD = """
import json, math, resource, sys
from vitrify.export.families.pipelines import SPECS
from vitrify.export.graph import graph_from_module

family, name, config = json.loads(sys.stdin.read())
spec = next(s for s in SPECS[family] if s.name == name)
model = graph_from_module(spec, config)
weights = [v for v in model.graph.initializers.values() if getattr(v.const_value, "location", "") == "weights"]
print(json.dumps({
    "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "parameters": sum(math.prod(v.shape) for v in weights),
    "inputs": [v.name for v in model.graph.inputs],
}))
"""


@pytest.mark.parametrize(("family", "name"), MODELS)
def test_a_full_size_component_is_traced_in_the_memory_of_its_graph(
    family: str, name: str, environment: dict[str, str]
) -> None:
    config, parameters = MODELS[family, name]
    given = json.dumps([family, name, config])
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=given, env=environment, capture_output=True, text=True, timeout=3000
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{family} {name}: {found['memory'] / 1e6:.0f} MB")
    assert found["parameters"] == parameters
    assert found["inputs"][0] in ("sample", "hidden_states", "input_ids")
    assert found["memory"] <= LIMIT
