"""ControlNets of transformers inside a generation: which residual goes where, and what a ControlNet is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vitrify
from vitrify.core.errors import BadInput
from vitrify.core.tensors import DType, TensorSpec
from vitrify.pipelines.autoencoder import Autoencoder
from vitrify.pipelines.control import ControlNet, Controls, ControlUnit, misfit, prepared_pictures, residual_inputs
from vitrify.pipelines.families.base import Family
from vitrify.pipelines.families.flux import Flux
from vitrify.pipelines.families.sana import Sana
from vitrify.pipelines.families.sd3 import StableDiffusion3
from vitrify.pipelines.random import generator

F32 = DType.FLOAT32
WIDTH = 8
OWN = {
    "hidden_states": TensorSpec(F32, ("batch", 4, "height", "width")),
    "encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", 6)),
    "pooled_projections": TensorSpec(F32, ("batch", 5)),
    "timestep": TensorSpec(F32, ("batch",)),
}
MORE = {"controlnet_cond": OWN["hidden_states"], "conditioning_scale": TensorSpec(F32, ())}


def residuals(double: int, single: int = 0, width: int = WIDTH) -> dict[str, TensorSpec]:
    names = [*(f"block_residual_{n}" for n in range(double)), *(f"single_residual_{n}" for n in range(single))]
    return dict.fromkeys(names, TensorSpec(F32, ("batch", "tokens", width)))


class Known:
    """A session that remembers what it was given, and whose residuals are their own numbers."""

    def __init__(self, inputs: Any, outputs: Any = None) -> None:
        self.inputs, self.outputs = inputs, outputs or {}
        self.seen: list[dict[str, Any]] = []

    def run(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        self.seen.append(dict(tensors))
        shape = (len(tensors["hidden_states"]), 6, WIDTH)
        return {name: np.full(shape, number + 1, np.float32) for number, name in enumerate(self.outputs)}


def net(session: Known, **settings: Any) -> ControlNet:
    control = {"residuals": 2, "pooled": False, "encoded": {"drawn": False, "shifted": True}, **settings}
    return ControlNet({"controlnet": session}, {"control": control}, Path("net"))  # type: ignore[dict-item]


class Spread(Family):
    """With latents as they are, and Flux's way of spreading."""

    sample = "hidden_states"
    residual_behind = Flux.residual_behind  # type: ignore[assignment]


def given(nets: list[ControlNet], denoiser: dict[str, TensorSpec], family: type[Family] = Spread) -> dict[str, Any]:
    grey = Image.new("RGB", (32, 16), (51, 51, 51))
    pictures = [np.zeros((2, 4, 4, 8), np.float32) for _ in nets]
    units = [ControlUnit(grey, one) for one in nets]
    made = Controls(units, pictures, Known(OWN | denoiser), family({}, {}, Path()), 4)  # type: ignore[arg-type]
    rows = {"encoder_hidden_states": np.ones((4, 5, 6), np.float32), "pooled_projections": np.ones((4, 5), np.float32)}
    return made.residuals(np.ones((2, 4, 4, 8), np.float32), 500.0, rows, 0, 4, guided=True)


@pytest.mark.parametrize("layers", [1, 5, 19, 24, 38])
@pytest.mark.parametrize("nets", [1, 2, 3, 6, 12, 23, 24, 40])
def test_residuals_are_spread_as_diffusers_counts(layers: int, nets: int) -> None:
    """SD3Transformer2DModel.forward, FluxTransformer2DModel.forward, SanaTransformer2DModel.forward."""
    other: Any = None
    spread = [StableDiffusion3.residual_behind(other, n, layers - 1, nets) for n in range(layers - 1)]
    assert spread == [int(n / (layers / nets)) for n in range(layers - 1)]
    spread = [Flux.residual_behind(other, n, layers, nets) for n in range(layers)]
    assert spread == [n // int(np.ceil(layers / nets)) for n in range(layers)]
    in_order = [Sana.residual_behind(other, n, layers - 1, nets) for n in range(layers - 1)]
    assert in_order == [n - 1 if 0 < n <= nets else None for n in range(1, layers)]


def test_blocks_that_get_the_same_share_an_array() -> None:
    found = given([net(Known(OWN | MORE, residuals(2)))], residuals(3, 2))
    assert [found[f"block_residual_{n}"][0, 0, 0] for n in range(3)] == [1, 1, 2]
    assert found["block_residual_0"] is found["block_residual_1"]
    assert found["block_residual_0"].shape == (4, 6, WIDTH)
    assert [found[f"single_residual_{n}"].shape for n in range(2)] == [(1, 1, WIDTH)] * 2, "no blocks of this kind"


def test_residuals_of_several_are_summed_where_they_go() -> None:
    nets = [net(Known(OWN | MORE, residuals(2, 1))), net(Known(OWN | MORE, residuals(3)))]
    found = given(nets, residuals(3, 2))
    assert [found[f"block_residual_{n}"][0, 0, 0] for n in range(3)] == [1 + 1, 1 + 2, 2 + 3]
    assert [found[f"single_residual_{n}"][0, 0, 0] for n in range(2)] == [3, 3]


def test_where_nothing_is_given_zeros_have_the_others_shape() -> None:
    class InOrder(Spread):
        residual_behind = Sana.residual_behind

    found = given([net(Known(OWN | MORE, residuals(1)))], residuals(3), InOrder)
    assert [found[f"block_residual_{n}"].shape for n in range(3)] == [(4, 6, WIDTH)] * 3
    assert [found[f"block_residual_{n}"].any() for n in range(3)] == [True, False, False]


def test_a_net_is_called_as_the_denoiser_is() -> None:
    session = Known(OWN | MORE, residuals(2))
    given([net(session, zeros=["pooled_projections"])], residuals(3))
    (seen,) = session.seen
    assert {n: v.shape for n, v in seen.items()} == {
        "hidden_states": (4, 4, 4, 8), "encoder_hidden_states": (4, 5, 6), "pooled_projections": (4, 5),
        "timestep": (4,), "controlnet_cond": (4, 4, 4, 8), "conditioning_scale": (),
    }  # fmt: skip
    assert not seen["pooled_projections"].any()
    assert seen["encoder_hidden_states"].all()
    told = Known(OWN | MORE, residuals(2))
    given([net(told)], residuals(3))
    assert told.seen[0]["pooled_projections"].all()


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        ({}, residuals(2, 1), "gives single_residual_0, which the model does not take"),
        ({}, residuals(2, width=9), "9 channels, the model's 8"),
        ({"guidance": TensorSpec(F32, ("batch",))}, residuals(2), "also reads guidance"),
        ({"encoder_hidden_states": TensorSpec(F32, ("batch", "tokens", 7))}, residuals(2), "text of 7 numbers a token"),
        ({"pooled_projections": TensorSpec(F32, ("batch", 7))}, residuals(2), "a pooled text of 7 numbers"),
    ],
)
def test_a_net_of_another_transformer_is_refused(inputs: Any, outputs: Any, said: str) -> None:
    denoiser = Known(OWN | residuals(3))
    assert misfit(Known(OWN | MORE, residuals(2)), None, denoiser, 8) is None
    assert misfit(Known(OWN | MORE, residuals(4)), None, denoiser, 8) is None, "more than there are blocks"
    with pytest.raises(BadInput, match=said):
        given([net(Known(OWN | MORE | inputs, outputs))], residuals(3))
    assert residual_inputs(denoiser) == [*residuals(3)]


def test_a_picture_is_encoded_by_the_models_vae(diffusion_artifact: Path) -> None:
    """As -1..1; the mean of what the VAE gives, or a sample of it."""
    model = vitrify.load(diffusion_artifact, "cpu")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    pixels = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / np.float32(255) * 2 - 1
    vae: Autoencoder = model.vae
    means, variances = np.split(next(iter(model.sessions["vae_encoder"].run({"sample": pixels}).values())), 2, axis=1)
    kept, vae.shift = vae.shift, np.float32(0.5)
    try:
        for drawn, shifted in ((False, True), (False, False), (True, True)):
            unit = ControlUnit(picture, net(Known(OWN | MORE), encoded={"drawn": drawn, "shifted": shifted}))
            noise = generator("cpu", 3)
            (got,) = prepared_pictures([unit], (32, 64), 1, model.family, vae, noise)
            same = means + np.exp(variances / 2) * generator("cpu", 3).normal(means.shape) if drawn else means
            np.testing.assert_allclose(got, (same - (0.5 if shifted else 0)) * vae.scaling, rtol=1e-4, atol=1e-5)
            left = generator("cpu", 3)
            if drawn:
                left.normal(means.shape)
            np.testing.assert_array_equal(noise.normal((1, 2, 2, 2)), left.normal((1, 2, 2, 2)))
    finally:
        vae.shift = kept
        model.close()
