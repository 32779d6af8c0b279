"""What is written tensor by tensor, the safetensors library reads; nothing is written that was not announced."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from vitrify.core.errors import DiskError
from vitrify.core.safetensors_header import read_header, read_tensor
from vitrify.core.safetensors_writer import SafetensorsWriter

RNG = np.random.default_rng(0)
TENSORS = {
    "unet.weight": RNG.standard_normal((3, 5)).astype(np.float32),
    "half": RNG.standard_normal((2, 2, 2)).astype(np.float16),
    "packed": RNG.integers(0, 256, 7, dtype=np.uint8),
    "values": RNG.integers(-128, 128, (4, 3)).astype(np.int8),
    "scalar": np.array(3.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "turned": RNG.standard_normal((4, 6)).astype(np.float32).T,
    "ünïcode": np.arange(3, dtype=np.int64),
}
NAMES = {"float32": "F32", "float16": "F16", "uint8": "U8", "int8": "I8", "int64": "I64"}


def plan(tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {n: (NAMES[t.dtype.name], t.shape) for n, t in tensors.items()}


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "deep/model.safetensors"
    with SafetensorsWriter(path, plan(TENSORS), {"recipe": "int8-weights"}) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    read = load_file(path)
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        assert (read[name] == tensor).all(), name
    from safetensors import safe_open

    with safe_open(path, "numpy") as file:
        assert file.metadata() == {"recipe": "int8-weights"}


def test_its_entries_are_what_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with SafetensorsWriter(path, plan(TENSORS)) as writer:
        for name, tensor in TENSORS.items():
            writer.write(name, tensor)
    assert writer.entries == read_header(path)
    for name, tensor in TENSORS.items():
        assert (read_tensor(writer.entries[name]) == tensor).all()
    assert min(e.offset for e in writer.entries.values()) % 64 == 0


def test_bfloat16_is_given_as_its_bits(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000], np.uint16)  # 1 and -2
    with SafetensorsWriter(tmp_path / "a.safetensors", {"w": ("BF16", (2,))}) as writer:
        writer.write("w", bits)
    assert read_tensor(writer.entries["w"], "float32").tolist() == [1.0, -2.0]


def write(path: Path, steps: Callable[[SafetensorsWriter], Any]) -> None:
    with SafetensorsWriter(path, {"a": ("F32", (2,)), "b": ("F32", (3,))}) as writer:
        steps(writer)


A, B = np.zeros(2, np.float32), np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("steps", "what"),
    [
        (lambda w: w.write("b", B), "b is written out of turn"),
        (lambda w: (w.write("a", A), w.write("a", A)), "a is written out of turn"),
        (lambda w: (w.write("a", A), w.write("b", B), w.write("c", B)), "c is written out of turn"),
        (lambda w: w.write("a", B), "a has 12 bytes, 8 were announced"),
        (lambda w: w.write("a", A.astype(np.float64)), "a has 16 bytes, 8 were announced"),
        (lambda w: w.write("a", A), "b were announced and not written"),
    ],
)
def test_what_was_not_announced_is_not_written(
    tmp_path: Path, steps: Callable[[SafetensorsWriter], Any], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        write(tmp_path / "a.safetensors", steps)


def test_the_first_error_is_the_one_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "a.safetensors", lambda w: 1 // 0)


@pytest.mark.parametrize("elements", [400_000, 40_000_000])
def test_a_full_disk_is_told(full_disk: Path, elements: int) -> None:
    path = full_disk / "model.safetensors"
    with (
        pytest.raises(DiskError, match=r"disk that holds .*model\.safetensors is full"),
        SafetensorsWriter(path, {"w": ("F32", (elements,))}) as writer,
    ):
        writer.write("w", np.zeros(elements, np.float32))
    path.unlink()
    assert os.listdir(full_disk) == []


def test_a_disk_too_small_for_the_header_is_told(full_disk: Path) -> None:
    many = {f"layers.{i}.weight": ("F32", (1,)) for i in range(20_000)}
    with pytest.raises(DiskError, match="is full"):
        SafetensorsWriter(full_disk / "model.safetensors", many)


def test_only_the_tensor_at_hand_is_in_memory(tmp_path: Path, python: Callable[..., Any]) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from vitrify.core.safetensors_writer import SafetensorsWriter

def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

names = [f"w{i}" for i in range(40)]
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: it would be that of the parent
before = memory("VmRSS")
with SafetensorsWriter(Path(sys.argv[1]), {n: ("F32", (1_000_000,)) for n in names}) as writer:
    for name in names:
        writer.write(name, np.ones(1_000_000, np.float32))
print(memory("VmHWM") - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc, which tells a process its peak")
    done = python(code, tmp_path / "large.safetensors")
    assert done.code == 0, done.err
    assert math.isclose((tmp_path / "large.safetensors").stat().st_size, 160_000_000, rel_tol=0.01)
    assert done.json < 30_000_000
