"""Energy from files as the kernel writes them, and what is said where there are none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vitrify.bench.energy import EnergyMeter
from vitrify.core.errors import DeviceError, UsageError

RANGE = 262143328850  # microjoules, as Intel's servers give it
Zone = Callable[..., Path]


@pytest.fixture
def zone(tmp_path: Path) -> Zone:
    """A zone as the kernel shows it: a folder with numbers in microjoules, each with a line's end."""

    def make(folder: str, name: str, energy: int, largest: int = RANGE) -> Path:
        path = tmp_path / "class/powercap" / folder
        path.mkdir(parents=True)
        (path / "name").write_text(f"{name}\n")
        (path / "energy_uj").write_text(f"{energy}\n")
        (path / "max_energy_range_uj").write_text(f"{largest}\n")
        return path / "energy_uj"

    return make


def test_one_package(zone: Zone, tmp_path: Path) -> None:
    energy = zone("intel-rapl:0", "package-0", 4_000_000)
    meter = EnergyMeter(sysfs=tmp_path)
    assert meter.source_is_readable
    assert meter.source == "RAPL package-0"
    meter.start()
    energy.write_text("9500000\n")
    assert meter.stop() == pytest.approx(5.5)
    meter.start()
    assert meter.stop() == 0.0  # readable, and nothing was used


def test_the_counter_starts_again(zone: Zone, tmp_path: Path) -> None:
    energy = zone("intel-rapl:0", "package-0", RANGE - 1_000_000)
    meter = EnergyMeter(sysfs=tmp_path)
    meter.start()
    energy.write_text("2000000\n")
    assert meter.stop() == pytest.approx(3.0)


def test_several_packages_without_their_parts(zone: Zone, tmp_path: Path) -> None:
    counted = [zone("intel-rapl:0", "package-0", 10), zone("intel-rapl:1", "package-1", RANGE - 500_000)]
    parts = [zone("intel-rapl:0:0", "core", 10), zone("intel-rapl:0:1", "dram", 10), zone("intel-rapl:2", "psys", 10)]
    parts += [zone("intel-rapl-mmio:0", "package-0", 10)]  # the same package, read another way
    (tmp_path / "class/powercap/intel-rapl").mkdir()  # the driver itself
    meter = EnergyMeter(sysfs=tmp_path)
    assert meter.source == "RAPL package-0, RAPL package-1"
    meter.start()
    counted[0].write_text("2000010\n")
    counted[1].write_text("500000\n")
    for part in parts:
        part.write_text("99000000\n")
    assert meter.stop() == pytest.approx(2 + 1)


def test_no_rapl(tmp_path: Path) -> None:
    meter = EnergyMeter(sysfs=tmp_path)
    assert not meter.source_is_readable
    assert meter.source == f"no RAPL: {tmp_path}/class/powercap does not exist; virtual machines seldom have it"
    meter.start()
    assert meter.stop() is None
    (tmp_path / "class/powercap").mkdir(parents=True)
    assert "has no package" in EnergyMeter(sysfs=tmp_path).source


def test_not_readable_by_this_user(zone: Zone, tmp_path: Path) -> None:
    """As the kernel has it since 5.10, for whoever is not root: one package that is closed closes the figure."""
    zone("intel-rapl:0", "package-0", 10)
    zone("intel-rapl:1", "package-1", 10).chmod(0)
    with tempfile.TemporaryDirectory() as open_to_all:  # pytest's own folders are closed to others
        sysfs = Path(open_to_all)
        shutil.copytree(tmp_path / "class", sysfs / "class")
        sysfs.chmod(0o755)
        with without_root():
            meter = EnergyMeter(sysfs=sysfs)
            meter.start()
            assert meter.stop() is None
    assert meter.source == f"no RAPL: {sysfs}/class/powercap/intel-rapl:1/energy_uj is not readable by this user"
    assert not meter.source_is_readable


@contextmanager
def without_root() -> Iterator[None]:
    """Root reads everything, so another user looks."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("text", ["", "many\n"])
def test_a_file_that_holds_no_number(zone: Zone, tmp_path: Path, text: str) -> None:
    energy = zone("intel-rapl:0", "package-0", 10)
    energy.write_text(text)
    meter = EnergyMeter(sysfs=tmp_path)
    assert not meter.source_is_readable
    assert meter.source.startswith(f"no RAPL: {energy.parent} cannot be read")


def test_a_counter_that_goes_away(zone: Zone, tmp_path: Path) -> None:
    energy = zone("intel-rapl:0", "package-0", 10)
    meter = EnergyMeter(sysfs=tmp_path)
    meter.start()
    energy.unlink()
    assert meter.stop() is None
    assert "could be read no longer" in meter.source


def test_not_started(zone: Zone, tmp_path: Path) -> None:
    zone("intel-rapl:0", "package-0", 10)
    meter = EnergyMeter(sysfs=tmp_path)
    with pytest.raises(UsageError, match=r"not started.*start\(\) first"):
        meter.stop()
    meter.start()
    meter.stop()
    with pytest.raises(UsageError):
        meter.stop()


def test_a_part_does_not_pass_for_the_whole(zone: Zone, tmp_path: Path) -> None:
    """The processor's energy alone is no figure for what a GPU runs."""
    zone("intel-rapl:0", "package-0", 10)
    meter = EnergyMeter("gpu", tmp_path)
    meter.start()
    assert meter.stop() is None
    assert meter.source == "no counter is known for the device gpu"
    with pytest.raises(UsageError, match="'tpu' is not a device"):
        EnergyMeter("tpu", tmp_path)


def _has_gpu() -> bool:
    from vitrify.runtimes.cuda import find_gpus

    try:
        return bool(find_gpus())
    except DeviceError:
        return False


@pytest.mark.skipif(_has_gpu(), reason="needs a machine without an NVIDIA GPU")
def test_no_nvidia_gpu(zone: Zone, tmp_path: Path) -> None:
    zone("intel-rapl:0", "package-0", 10)
    meter = EnergyMeter("cuda:1", tmp_path)
    assert not meter.source_is_readable
    if importlib.util.find_spec("pynvml"):
        assert meter.source.startswith("no NVML: There is no")
    else:
        assert meter.source == "no NVML: nvidia-ml-py is not installed"


@pytest.mark.gpu
@pytest.mark.skipif(not _has_gpu(), reason="needs an NVIDIA GPU and its driver")
def test_energy_of_an_nvidia_gpu(zone: Zone, tmp_path: Path) -> None:
    import time

    pytest.importorskip("pynvml", reason="needs nvidia-ml-py")
    energy = zone("intel-rapl:0", "package-0", 0)
    meter = EnergyMeter("cuda", tmp_path)
    assert meter.source == "RAPL package-0, NVML GPU 0"
    meter.start()
    time.sleep(2)
    energy.write_text("1000000\n")
    joules = meter.stop()
    assert joules is not None
    assert 1 < joules < 2 * 1500  # a card uses some watts when idle, and none uses 1500
