"""Rounding loses no more than it says, and what is packed is what other libraries unpack."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vitrify.core.errors import BadInput
from vitrify.quant.weights import (
    E4M3,
    NF4_LEVELS,
    Quantized,
    fitting_group,
    float8_bits,
    float8_values,
    nf4_values,
    packed,
    quantize_float8,
    quantize_integers,
    quantize_nf4,
)

RNG = np.random.default_rng(0)
SHAPES = {"linear": (24, 64), "convolution": (12, 32, 3, 3)}


def weight(kind: str, spread: float = 1.0) -> np.ndarray:
    """Normal numbers, each output channel of another size, with an outlier."""
    shape = SHAPES[kind]
    made = RNG.standard_normal(shape) * RNG.uniform(0.1, 5, (shape[0], *[1] * (len(shape) - 1))) * spread
    made.reshape(-1)[7] *= 6
    return made.astype(np.float32)


def steps(done: Quantized) -> np.ndarray:
    """Each weight's scale."""
    return np.broadcast_to(done.spread(done.scales), done.values.shape)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [0, 16, 32])
@pytest.mark.parametrize("top", [0, 63])
def test_int8_is_off_by_half_a_step_at_most(kind: str, group: int, top: int) -> None:
    given = weight(kind)
    done = quantize_integers(given, 8, group, top=top)
    assert done.values.dtype == np.int8
    assert done.zeros is None
    assert np.abs(done.values).max() == (top or 127), "the range is used whole, and its lowest value is not"
    assert (np.abs(given - done.dequantized()) <= steps(done) * 0.500001).all()


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [16, 32])
def test_int4_is_off_by_half_a_step_inside_its_range_and_clips_outside(kind: str, group: int) -> None:
    given = weight(kind)
    done = quantize_integers(given, 4, group)
    assert (done.values.min(), done.values.max()) == (-8, 7)
    asked = given / steps(done)
    inside = (asked >= -8.5) & (asked <= 7.5)
    assert inside.mean() > 0.9
    assert (np.abs(given - done.dequantized()) <= steps(done) * 0.500001)[inside].all()
    assert (done.values == np.where(asked < 0, -8, 7))[~inside].all()


@pytest.mark.parametrize("group", [16, 32])
def test_the_scale_of_int4_loses_no_more_than_the_plain_one(group: int) -> None:
    given = weight("linear")
    parts = given.reshape(24, -1, group)
    plain = np.abs(parts).max(axis=2, keepdims=True) / 7
    lost = np.square(parts - np.rint(parts / plain) * plain).sum(axis=2)
    ours = np.square(given - quantize_integers(given, 4, group).dequantized()).reshape(24, -1, group).sum(axis=2)
    assert (ours <= lost * 1.00001).all()
    assert ours.sum() < 0.98 * lost.sum()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("group", [0, 16])
def test_asymmetric_weights_use_all_integers_and_keep_zero(bits: int, kind: str, group: int) -> None:
    given = np.abs(weight(kind)) + np.float32(0.01)  # a symmetric range would leave half of it unused
    given.reshape(len(given), -1)[:, ::5] = 0
    done = quantize_integers(given, bits, group, symmetric=False)
    assert done.zeros is not None
    assert done.zeros.shape == done.scales.shape
    assert (done.values.min(), done.values.max()) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    error = np.abs(given - done.dequantized())
    assert (error <= steps(done) * 0.500001).all()
    assert (error[given == 0] == 0).all()
    symmetric = quantize_integers(given, 8, group)
    assert (steps(done) < steps(symmetric) * (0.6 if bits == 8 else 16.5)).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_asymmetric_weights_of_both_signs_are_off_by_a_step_at_most(bits: int) -> None:
    given = weight("linear") + np.float32(0.7)
    done = quantize_integers(given, bits, 16, symmetric=False)
    error = np.abs(given - done.dequantized())
    ends = (done.values == -(2 ** (bits - 1))) | (done.values == 2 ** (bits - 1) - 1)  # where the zero was rounded
    assert (error <= steps(done) * np.where(ends, 1.000001, 0.500001)).all()


@pytest.mark.parametrize(
    ("group", "kind", "scales"),
    [(0, "linear", (24,)), (16, "linear", (24, 4)), (0, "convolution", (12,)), (16, "convolution", (12, 2, 3, 3))],
)
def test_a_scale_belongs_to_its_channel_or_group(group: int, kind: str, scales: tuple[int, ...]) -> None:
    given = weight(kind)
    before = quantize_integers(given, 8, group)
    assert before.scales.shape == scales
    assert (before.axis, before.group) == ((1, group) if group else (0, 0))
    changed = given.copy()
    changed[3, 17] *= 100
    after = quantize_integers(changed, 8, group)
    moved = np.argwhere(after.scales != before.scales)
    assert {tuple(m[:2]) for m in moved} == ({(3, 1)} if group else {(3,)})


@pytest.mark.parametrize("quantize", [lambda w: quantize_integers(w, 8), lambda w: quantize_integers(w, 4, 16)])
def test_zeros_stay_zeros(quantize: Callable[[np.ndarray], Quantized]) -> None:
    given = weight("linear")
    given[5] = 0  # a whole channel, whose scale would be nothing
    done = quantize(given)
    assert np.isfinite(done.scales).all()
    assert (done.dequantized()[5] == 0).all()
    assert (quantize(np.zeros_like(given)).dequantized() == 0).all()
    assert (quantize_integers(np.zeros_like(given), 4, 16, symmetric=False).dequantized() == 0).all()
    assert (nf4_values(quantize_nf4(np.zeros_like(given), 16)) == 0).all()


def test_tiny_weights_keep_their_size() -> None:
    given = weight("linear", spread=1e-30)
    for done in (quantize_integers(given, 8), quantize_integers(given, 4, 16)):
        assert (np.abs(given - done.dequantized()) <= steps(done) * 1.6).all()
        assert np.abs(done.dequantized()).max() > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "quantize",
    [
        lambda w: quantize_integers(w, 8),
        lambda w: quantize_integers(w, 4, 16),
        lambda w: quantize_integers(w, 8, symmetric=False),
        lambda w: quantize_nf4(w, 16),
    ],
    ids=["int8", "int4", "asymmetric", "nf4"],
)
def test_a_weight_that_is_no_number_is_refused(quantize: Callable[[np.ndarray], Quantized], bad: float) -> None:
    given = weight("linear")
    given[2, 3] = bad
    with pytest.raises(BadInput, match="NaN or infinity"):
        quantize(given)


@pytest.mark.parametrize("kind", SHAPES)
def test_nf4_takes_the_nearest_level(kind: str) -> None:
    given = weight(kind)
    done = quantize_nf4(given, 16)
    shares = given / steps(done)
    nearest = np.abs(shares[..., None] - NF4_LEVELS).argmin(axis=-1)
    off = np.abs(np.abs(shares - NF4_LEVELS[done.values]) - np.abs(shares - NF4_LEVELS[nearest]))
    assert (off < 1e-6).all()  # of two that are equally near, either
    assert (nf4_values(done) == NF4_LEVELS[done.values] * steps(done)).all()
    assert np.abs(shares).max() == 1


def test_the_levels_of_nf4_are_those_of_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    from bitsandbytes.functional import dequantize_nf4, get_4bit_type, quantize_nf4

    assert (get_4bit_type("nf4", device="cpu").numpy() == NF4_LEVELS).all()
    import torch

    given = weight("linear")
    theirs = dequantize_nf4(*quantize_nf4(torch.from_numpy(given), blocksize=64)).numpy()
    ours = nf4_values(globals()["quantize_nf4"](given, 64))
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(given).max()


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (4, 5), (5, 5), (3, 4, 2)])
def test_int4_is_packed_as_onnx_unpacks_it(shape: tuple[int, ...]) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    values = RNG.integers(-8, 8, shape).astype(np.int8)
    data = packed(values)
    assert data.size == (values.size + 1) // 2
    tensor = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, shape, data.tobytes(), raw=True)
    assert (onnx.numpy_helper.to_array(tensor).astype(np.int8) == values).all()
    if values.size % 2:
        assert data[-1] >> 4 == 0


def test_an_array_that_is_not_contiguous_is_packed_in_its_own_order() -> None:
    values = RNG.integers(-8, 8, (6, 4)).astype(np.int8)
    assert (packed(values.T) == packed(np.ascontiguousarray(values.T))).all()
    assert (packed(values.T) != packed(values)).any()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [0, 32])
@pytest.mark.parametrize("symmetric", [True, False])
def test_dequantized_is_what_onnx_defines(bits: int, group: int, symmetric: bool) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    from onnx import TensorProto, helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    given = weight("linear")
    done = quantize_integers(given, bits, group, symmetric)
    kind = TensorProto.INT8 if bits == 8 else TensorProto.INT4

    def integers(name: str, array: np.ndarray) -> onnx.TensorProto:
        data = array if bits == 8 else packed(array)
        return helper.make_tensor(name, kind, array.shape, data.tobytes(), raw=True)

    constants = [integers("w", done.values), numpy_helper.from_array(done.scales, "s")]
    if done.zeros is not None:
        constants.append(integers("z", done.zeros))
    attributes = {"axis": done.axis} | ({"block_size": group} if group else {})
    node = helper.make_node("DequantizeLinear", [c.name for c in constants], ["y"], **attributes)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, given.shape)
    graph = helper.make_graph([node], "g", [], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    (expected,) = ReferenceEvaluator(model).run(None, {})
    assert np.abs(done.dequantized() - expected).max() <= 1e-6 * np.abs(given).max()


@pytest.mark.parametrize(
    ("inputs", "group", "fits"),
    [(64, 64, 64), (96, 64, 32), (48, 64, 16), (320, 128, 64), (24, 64, 0), (7, 32, 0), (16, 256, 16), (0, 8, 0)],
)
def test_a_group_that_does_not_divide_is_halved(inputs: int, group: int, fits: int) -> None:
    assert fitting_group(inputs, group) == fits


def test_float8_is_rounded_as_ml_dtypes_rounds_it() -> None:
    """To the nearest, and of two that are as near to the even one."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="comes with vitrify[export]")
    middles = (E4M3[1:] + E4M3[:-1]) / 2
    some = np.clip(RNG.standard_normal(20_000) * 100, -448, 448)
    given = np.concatenate([E4M3, -E4M3, middles, -middles, [0.0, -0.0, 1e-9, -1e-9], some]).astype(np.float32)
    theirs = given.astype(ml_dtypes.float8_e4m3fn)
    assert len(E4M3) == 127
    np.testing.assert_array_equal(float8_bits(given), theirs.view(np.int8))
    assert (float8_bits(np.array([1e9, -1e9], np.float32)).view(np.uint8) == [0x7E, 0xFE]).all(), "448, no NaN"


@pytest.mark.parametrize("kind", SHAPES)
def test_float8_loses_a_sixteenth_of_a_number_at_most(kind: str) -> None:
    given = weight(kind)
    done = quantize_float8(given)
    assert (done.values.shape, done.scales.shape, done.group, done.zeros) == (given.shape, given.shape[:1], 0, None)
    made = float8_values(done)
    least = steps(done) * E4M3[1]  # what is smaller has fewer digits
    assert (np.abs(made - given) <= np.maximum(np.abs(given) / 16, least / 2) * 1.000001).all()
    largest = np.abs(given).reshape(len(given), -1).max(axis=1)
    np.testing.assert_allclose(np.abs(made).reshape(len(given), -1).max(axis=1), largest, rtol=1e-6)
    assert (float8_values(quantize_float8(np.zeros_like(given))) == 0).all()
    given.flat[3] = np.nan
    with pytest.raises(BadInput, match="NaN or infinity"):
        quantize_float8(given)
