"""Device names as users write them."""

from __future__ import annotations

import pytest

from vitrify.core.device import KINDS, Device
from vitrify.core.errors import UsageError


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("cpu", Device("cpu")),
        (" CPU ", Device("cpu")),
        ("cuda:1", Device("cuda", 1)),
        ("GPU.0", Device("gpu", 0)),
        ("gpu:12", Device("gpu", 12)),
        ("hetero:GPU,CPU", Device("hetero", None, "GPU,CPU")),
        ("auto:gpu.1,cpu", Device("auto", None, "GPU.1,CPU")),
    ],
)
def test_names(text: str, device: Device) -> None:
    assert Device.parse(text) == device


@pytest.mark.parametrize("text", [*KINDS, "cuda:0", "cuda:1", "hetero:GPU,CPU", "auto:GPU.1,CPU"])
def test_a_name_written_out_is_read_again(text: str) -> None:
    assert str(Device.parse(text)) == text
    assert Device.parse(str(Device.parse(text))) == Device.parse(text)


@pytest.mark.parametrize(
    "text", ["", "tpu", "cuda:", "cuda:-1", "cuda:one", "cpu:foo", "cuda:0,1", "cuda 1", "cpu;rm", "c"]
)
def test_what_is_no_device_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Device.parse(text)
    assert repr(text) in caught.value.what
    assert all(kind in caught.value.fix for kind in KINDS)
