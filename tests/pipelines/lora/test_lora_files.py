"""Reading LoRA files: the layouts, the scale, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vitrify.core.errors import BadInput
from vitrify.pipelines.lora import read_lora

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = np.ones((2, 6), np.float32), np.full((5, 2), 3, np.float32)


def saved(path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path / "given.safetensors", metadata)
    return path / "given.safetensors"


@pytest.mark.parametrize(
    ("down", "up", "layer"),
    [
        ("x.lora_down.weight", "x.lora_up.weight", "x"),
        ("unet.x.lora_A.weight", "unet.x.lora_B.weight", "unet.x"),
        ("unet.x.lora_A.default.weight", "unet.x.lora_B.default.weight", "unet.x"),
        ("unet.x.lora.down.weight", "unet.x.lora.up.weight", "unet.x"),
        ("unet.x.processor.to_q_lora.down.weight", "unet.x.processor.to_q_lora.up.weight", "unet.x.processor.to_q"),
        ("x.fc1.lora_linear_layer.down.weight", "x.fc1.lora_linear_layer.up.weight", "x.fc1"),
    ],
)
def test_the_layouts_of_trainers(tmp_path: Path, down: str, up: str, layer: str) -> None:
    lora = read_lora(saved(tmp_path, {down: DOWN, up: UP}))
    assert lora.name == "given"
    assert list(lora.layers) == [layer]
    one = lora.layers[layer]
    assert (one.sizes, one.kernel, one.scale) == ((5, 6), (), 1.0)
    given_down, given_up = one.factors()
    np.testing.assert_array_equal(given_down, DOWN)
    np.testing.assert_array_equal(given_up, UP)


def test_alpha_scales_by_the_rank(tmp_path: Path) -> None:
    tensors = {f"{LAYER}.lora_down.weight": DOWN, f"{LAYER}.lora_up.weight": UP, f"{LAYER}.alpha": np.float16(1)}
    lora = read_lora(saved(tmp_path, {n: np.asarray(t) for n, t in tensors.items()}))
    assert lora.layers[LAYER].scale == 0.5
    np.testing.assert_array_equal(lora.layers[LAYER].factors()[1], UP / 2)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"unet.r": 2, "unet.lora_alpha": 8}, 4.0),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"^mid.to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"o_q": 1}}, 4.0),
        ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
        ({"text_encoder.lora_alpha": 8}, 1.0),
        ({"lora_alpha": 8}, 4.0),
    ],
)
def test_alpha_from_pefts_settings(tmp_path: Path, settings: dict[str, Any], scale: float) -> None:
    tensors = {"unet.mid.to_q.lora_A.weight": DOWN, "unet.mid.to_q.lora_B.weight": UP}
    lora = read_lora(saved(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(settings)}))
    assert lora.layers["unet.mid.to_q"].scale == pytest.approx(scale)


def test_a_matrix_between_the_two_is_folded_into_the_first(tmp_path: Path) -> None:
    """LyCORIS' `conv` with a core: W[o, i] = up[o, r] mid[r, s] down[s, i] at each place of the kernel."""
    rng = np.random.default_rng(0)
    down, mid, up = (rng.standard_normal(s).astype(np.float32) for s in ((2, 6, 1, 1), (2, 2, 3, 3), (5, 2, 1, 1)))
    parts = {"lora_down": down, "lora_mid": mid, "lora_up": up}
    one = read_lora(saved(tmp_path, {f"{LAYER}.{n}.weight": t for n, t in parts.items()})).layers[LAYER]
    assert one.sizes == (5, 6, 3, 3)
    folded, last = one.factors()
    torch = pytest.importorskip("torch", reason="needs the extra export")
    x = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    conv = torch.nn.functional.conv2d
    wanted = conv(conv(conv(x, torch.from_numpy(down)), torch.from_numpy(mid), padding=1), torch.from_numpy(up))
    merged = torch.from_numpy((last @ folded.reshape(2, -1)).reshape(5, 6, 3, 3))
    np.testing.assert_allclose(conv(x, merged, padding=1), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({f"{LAYER}.dora_scale": np.ones(5, np.float32)}, r"is DoRA \(.*dora_scale\), which is not supported"),
        ({f"{LAYER}.hada_w1_a": np.ones((2, 2), np.float32)}, "is LoHa"),
        ({f"{LAYER}.lokr_w1": np.ones((2, 2), np.float32)}, "is LoKr"),
        ({f"{LAYER}.diff_b": np.ones(5, np.float32)}, "is whole differences of weights"),
        ({"unet.x.lora_B.bias": np.ones(5, np.float32)}, "is a LoRA with biases"),
        ({"conv_in.weight": np.ones((5, 2), np.float32)}, r"is no LoRA: one is none, such as conv_in\.weight"),
        ({f"{LAYER}.alpha": np.ones(3, np.float32)}, "alpha of .* is no single number"),
        ({f"{LAYER}.alpha": np.array(np.nan, np.float32)}, "alpha of .* is nan"),
        ({"y.lora_down.weight": DOWN}, "y lacks its up matrix"),
        ({"y.lora_up.weight": UP}, "y lacks its down matrix"),
        ({"y.lora_down.weight": DOWN, "y.lora_up.weight": DOWN}, r"matrices of y do not fit .*down F32 \[2, 6\]"),
        (
            {"y.lora_down.weight": DOWN.astype(np.int8), "y.lora_up.weight": UP},
            r"matrices of y do not fit each other \(down I8",
        ),
    ],
)  # fmt: skip
def test_what_is_no_lora_is_refused(tmp_path: Path, extra: dict[str, np.ndarray], said: str) -> None:
    tensors = {f"{LAYER}.lora_down.weight": DOWN, f"{LAYER}.lora_up.weight": UP}
    with pytest.raises(BadInput, match=said):
        read_lora(saved(tmp_path, tensors | extra))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is a textual inversion embedding, no LoRA"):
        read_lora(saved(tmp_path, {"emb_params": DOWN}))
    with pytest.raises(BadInput, match=r"is no LoRA: 2 of its 2 tensors are no part of one"):
        read_lora(saved(tmp_path, {"conv_in.weight": DOWN, "conv_out.weight": UP}))
    (tmp_path / "old.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(BadInput, match="pickle"):
        read_lora(tmp_path / "old.safetensors")


@pytest.mark.parametrize("text", ["[1]", "{", '"x"'])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    tensors = {"unet.x.lora_A.weight": DOWN, "unet.x.lora_B.weight": UP}
    with pytest.raises(BadInput, match="has settings that cannot be read"):
        read_lora(saved(tmp_path, tensors, {"lora_adapter_metadata": text}))


def test_a_factor_that_holds_nan_is_refused(tmp_path: Path) -> None:
    tensors = {"unet.x.lora_A.weight": DOWN * np.nan, "unet.x.lora_B.weight": UP}
    lora = read_lora(saved(tmp_path, tensors))
    with pytest.raises(BadInput, match=r"unet\.x\.lora_A\.weight holds NaN"):
        lora.layers["unet.x"].factors()
