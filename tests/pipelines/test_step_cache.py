"""Which steps are computed whole."""

from __future__ import annotations

import numpy as np
import pytest

from vitrify.core.errors import UsageError
from vitrify.pipelines.step_cache import MOST, StepCache


def calls(text: str, features: list[float]) -> list[bool]:
    """Which calls are whole, where call n's deep features are an array of features[n]."""
    policy, whole = StepCache.parse(text).policy(), []
    for value in features:
        whole.append(policy.whole())
        if whole[-1]:
            policy.saw(np.full((2, 3), value, np.float32))
    return whole


@pytest.mark.parametrize(("interval", "whole"), [("2", [0, 2, 4, 6]), ("3", [0, 3, 6]), ("10", [0])])
def test_every_so_many_calls_one_is_whole(interval: str, whole: list[int]) -> None:
    assert [n for n, one in enumerate(calls(interval, [1.0] * 8)) if one] == whole


def test_features_that_change_little_are_kept_longer() -> None:
    # from 1 to 1.1 is 0.0909 of 1.1 a call: 0.2 is reached with the third
    assert calls("0.2", [1, 1.1, 1.2, 1.3, 1.4, 1.5]) == [True, True, False, False, True, False]
    assert calls("0.05", [1, 1.1, 1.2, 1.3]) == [True] * 4
    # measured over two calls, from 1.1 to 1.1: nothing changes any more
    assert calls("0.1", [1, 1.1, 1.1, 1.1, 1.1, 1.1]) == [True, True, False, True, False, False]


def test_features_that_never_change_are_computed_again_in_the_end() -> None:
    whole = calls("0.5", [1.0] * (2 * MOST + 4))
    assert [n for n, one in enumerate(whole) if one] == [0, 1, MOST + 2, 2 * MOST + 3]


def test_a_policy_is_of_one_generation() -> None:
    cache = StepCache.parse("3")
    assert cache.policy() is not cache.policy()
    assert str(cache) == "3"
    assert str(StepCache.parse("0.10")) == "0.1"


@pytest.mark.parametrize("text", ["", "1", "0", "-2", "11", "2.5", "nan", "inf", "1.0", "three", "0.0"])
def test_what_is_no_step_cache(text: str) -> None:
    with pytest.raises(UsageError, match="The step cache is") as caught:
        StepCache.parse(text)
    assert "Give 2 to 10" in caught.value.fix
