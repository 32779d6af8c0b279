"""Which devices a machine has, which runtime runs them, and which is used where none is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import DeviceError
from vitrify.runtimes import hardware
from vitrify.runtimes.base import Probe
from vitrify.runtimes.cuda import Gpu
from vitrify.runtimes.doctor import chosen

OPENED = {"cuda": "cuda", "cpu": "cpu", "openvino": "cpu"}  # provider -> the kind of device that it opened
ONNX = {
    "usable": True,
    "devices": ["cuda", "cpu"],
    "details": {"providers": [{"name": name, "opened": [kind]} for name, kind in OPENED.items()]},
}
TORCH = {"usable": True, "devices": ["cuda:1", "cpu"], "details": {}}
BROKEN = {"usable": False, "what": "No beads."}


def rows(monkeypatch: pytest.MonkeyPatch, gpus: Any, **runtimes: Any) -> dict[str, dict[str, Any]]:
    def find() -> Any:
        if isinstance(gpus, Exception):
            raise gpus
        return gpus

    monkeypatch.setattr(hardware, "find_gpus", find)
    return {row["device"]: row for row in hardware.devices_here(runtimes)}


def test_each_device_says_who_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu(0, "A", (8, 6)), Gpu(1, "B", (8, 9)))
    found = rows(monkeypatch, gpus, onnx=ONNX, torch=TORCH, abacus=BROKEN)
    assert [(r["runtime"], r["provider"]) for r in found["cpu"]["runs"]] == [
        ("onnx", "cpu"), ("onnx", "openvino"), ("torch", ""),
    ]  # fmt: skip
    assert [r["runtime"] for r in found["cuda:0"]["runs"]] == ["onnx"], "torch lists the second GPU alone"
    assert [r["runtime"] for r in found["cuda:1"]["runs"]] == ["onnx", "torch"]
    assert "compute capability 8.9" in found["cuda:1"]["name"]


def test_a_gpu_that_no_runtime_runs_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, (Gpu(0, "A", (8, 6)),), onnx={"usable": True, "devices": ["cpu"], "details": {}})
    assert found["cuda:0"]["runs"] == []
    assert "no runtime that is installed runs it" in found["cuda:0"]["what"]
    assert "vitrify[tensorrt-rtx]" in found["cuda:0"]["fix"]


@pytest.mark.parametrize(("vendor", "seen"), [("0x10de", True), ("0x1234", False)])
def test_a_card_without_its_driver_is_told_apart_from_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vendor: str, seen: bool
) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text(f"{vendor}\n")
    (card / "class").write_text("0x030000\n")
    monkeypatch.setattr(hardware, "_PCI", tmp_path)
    found = rows(monkeypatch, DeviceError("No driver.", "Install it."))["cuda"]
    assert (found["found"], found["runs"], found["fix"]) == (False, [], "Install it.")
    assert ("is on the bus" in found["what"]) is seen
    assert "No driver." in found["what"]


def test_intels_gpus_are_those_that_openvino_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = {"usable": True, "devices": ["cpu", "gpu", "auto"], "details": {"devices": {"gpu": {"name": "Arc"}}}}
    found = rows(monkeypatch, DeviceError("No driver.", "Install it."), openvino=openvino)
    assert (found["gpu"]["name"], [r["runtime"] for r in found["gpu"]["runs"]]) == ("Arc", ["openvino"])
    assert not found["npu"]["found"]
    assert "auto" not in found, "it is no device"


@pytest.mark.parametrize(
    ("devices", "first", "why"),
    [
        (("cpu",), "cpu", "the only device there"),
        (("cpu", "cuda:0", "gpu"), "cuda:0", "the best of cuda:0, gpu, cpu"),
        (("cpu", "auto", "npu"), "npu", "the best of npu, cpu"),
        ((), "", "it lists no device"),
    ],
)
def test_the_device_that_is_used_where_none_is_named(devices: tuple[str, ...], first: str, why: str) -> None:
    told = chosen(Probe("x", "1", devices))
    assert told["device"] == first
    assert told["why"].startswith(why)
