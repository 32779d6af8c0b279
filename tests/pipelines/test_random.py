"""The noise is torch's: CPU numbers against torch itself, CUDA numbers against values published for CUDA."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vitrify.core.errors import BadInput
from vitrify.pipelines.random import PhiloxGenerator, TorchCpuGenerator, generator

# torch.randn(12, device="cuda") after manual_seed(0), as the A1111 webui's modules/rng_philox.py gives it.
CUDA_SEED_0 = [
    -0.9247, -0.4253, -2.6438, 0.1452, -0.1209, -0.5797, -0.6229, -0.3284, -1.0745, -0.3631, -1.6711, 2.2655,
]  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32 + 5, 2**63, 2**64 - 1, -1, -(2**63)])
@pytest.mark.parametrize(
    "shapes",
    [
        [(1, 4, 64, 64)],
        [(2, 4, 8, 8), (2, 4, 8, 8), (1, 4, 9, 7)],
        [(16,), (17,), (31,), (32,), (33,)],
        [(1,), (1,), (3,), (), (15,), (2, 2)],
        [(3,), (20,), (2,), (100,), (0,), (5,), (16,)],
    ],
)
def test_cpu_numbers_are_torchs_over_several_draws(seed: int, shapes: list[tuple[int, ...]]) -> None:
    theirs = torch.Generator("cpu").manual_seed(seed)
    ours = TorchCpuGenerator(seed)
    for shape in shapes:
        expected = torch.randn(shape, generator=theirs).numpy()
        drawn = ours.normal(shape)
        assert drawn.shape == shape
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-6)


def test_two_cpu_generators_do_not_disturb_each_other_or_numpy() -> None:
    np.random.seed(7)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    first, second = TorchCpuGenerator(3), TorchCpuGenerator(3)
    a = first.normal((40,))
    second.normal((5,))
    assert np.array_equal(first.normal((40,)), _second_draw(3, 40))
    assert not np.array_equal(a, first.normal((40,)))
    assert np.array_equal(before, np.random.get_state()[1])  # type: ignore[index]


def _second_draw(seed: int, count: int) -> np.ndarray:
    fresh = TorchCpuGenerator(seed)
    fresh.normal((count,))
    return fresh.normal((count,))


def test_philox_gives_the_published_cuda_numbers() -> None:
    np.testing.assert_allclose(PhiloxGenerator(0).normal((12,)), CUDA_SEED_0, atol=5e-5)


def test_philox_first_words_are_those_of_the_random123_reference() -> None:
    # Random123's kat_vectors, philox4x32-10, counter and key zero: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
    from vitrify.pipelines.random import _philox_words

    first, second = _philox_words(0, 0, 1)
    assert (int(first[0]), int(second[0])) == (0x6627E8D5, 0xE169C58D)


def test_philox_goes_on_with_the_next_call_and_uses_all_64_bits_of_the_seed() -> None:
    stream = PhiloxGenerator(5)
    a, b = stream.normal((2, 3)), stream.normal((2, 3))
    assert a.shape == (2, 3)
    assert a.dtype == np.float32
    assert not np.array_equal(a, b)
    assert np.array_equal(PhiloxGenerator(5).normal((2, 3)), a)
    assert not np.array_equal(PhiloxGenerator(5 + 2**32).normal((2, 3)), a)
    assert np.array_equal(PhiloxGenerator(-1).normal((4,)), PhiloxGenerator(2**64 - 1).normal((4,)))


def test_philox_numbers_are_standard_normal() -> None:
    values = PhiloxGenerator(11).normal((1, 4, 128, 128))
    assert np.isfinite(values).all()
    assert abs(float(values.mean())) < 0.02
    assert abs(float(values.std()) - 1) < 0.02


def test_generator_by_name() -> None:
    assert isinstance(generator("cpu", 1), TorchCpuGenerator)
    assert isinstance(generator("philox", 1), PhiloxGenerator)
    with pytest.raises(BadInput) as wrong:
        generator("cuda", 1)
    assert "'cuda'" in wrong.value.what
    assert "cpu, philox" in wrong.value.fix


@pytest.mark.parametrize("name", ["cpu", "philox"])
@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(name: str, seed: int) -> None:
    with pytest.raises(BadInput, match="more than 64 bits"):
        generator(name, seed)
