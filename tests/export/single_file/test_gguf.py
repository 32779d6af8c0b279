"""GGUF files of a transformer: read, dequantized exactly, and refused where they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitrify.core.device import Device
from vitrify.core.errors import BadInput
from vitrify.core.registry import load_runtime
from vitrify.core.safetensors_header import read_tensor
from vitrify.export.gguf_source import read_gguf, unpacked
from vitrify.export.job import ExportJob, find_source
from vitrify.runtimes.base import Options

torch = pytest.importorskip("torch", reason="needs the extra export")
gguf = pytest.importorskip("gguf", reason="needs the extra gguf")

Made = tuple[Any, Path, Path]
Type = gguf.GGMLQuantizationType


def write(path: Path, tensors: dict[str, np.ndarray], kinds: Callable[[str, np.ndarray], Any]) -> dict[str, np.ndarray]:
    """Write a file as ComfyUI-GGUF's converter does; gives what its tensors stand for."""
    writer = gguf.GGUFWriter(str(path), "flux")
    stands_for = {}
    for name, values in tensors.items():
        kind = kinds(name, values)
        data = gguf.quants.quantize(values, kind)
        stands_for[name] = np.array(gguf.quants.dequantize(data, kind), np.float32).reshape(values.shape)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stands_for


def mixed(name: str, values: np.ndarray) -> Any:
    """Blocks for matrices, plain floats for the rest, and one matrix in each plain type."""
    if values.ndim < 2 or "norm" in name:
        return Type.F32
    if name.startswith("txt_in"):
        return Type.BF16
    if name.startswith("final_layer"):
        return Type.F16
    return Type.Q8_0 if "single" in name else Type.Q4_0


@pytest.fixture(scope="module")
def flux_gguf(flux: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    from safetensors.numpy import load_file

    path = tmp_path_factory.mktemp("gguf") / "flux-q4.gguf"
    tensors = {n: t for n, t in load_file(flux[2]).items() if not n.startswith("img_in.weight")}
    tensors |= {n: t for n, t in load_file(flux[2]).items() if n.startswith("img_in.weight")}
    # 16 channels are half a block
    return path, write(path, tensors, lambda n, v: Type.F16 if n == "img_in.weight" else mixed(n, v))


def test_every_tensor_is_what_its_blocks_stand_for(
    flux_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path, stands_for = flux_gguf
    entries = read_gguf(path)
    assert {e.dtype for e in entries.values()} == {"F32", "F16", "BF16", "Q4_0", "Q8_0"}
    made = unpacked(entries, tmp_path)
    assert {e.dtype for e in made.values()} == {"F32", "F16", "BF16"}
    assert set(made) == set(stands_for)
    for name, expected in stands_for.items():
        assert made[name].shape == expected.shape
        assert np.array_equal(read_tensor(made[name], "float32"), expected), name


@pytest.mark.slow  # traces a transformer
def test_a_flux_exports_and_computes_what_its_blocks_stand_for(
    flux: Made, flux_gguf: tuple[Path, dict[str, np.ndarray]], layouts: Any, tmp_path: Path
) -> None:
    _, folder, _ = flux
    path, stands_for = flux_gguf
    done = ExportJob(find_source(str(path), config=str(folder)), tmp_path / "out", verify=False).run()
    assert any("dequantized into a second copy of" in note for note in done.notes)
    same = layouts.save({n: torch.from_numpy(v) for n, v in stands_for.items()}, tmp_path / "same.safetensors")
    plain = ExportJob(find_source(str(same), config=str(folder)), tmp_path / "plain", verify=False).run()
    rng = np.random.default_rng(0)
    component = done.artifact.components["transformer"]
    given = {
        n: rng.standard_normal([{"batch": 1, "image_tokens": 6, "tokens": 5}.get(d, d) for d in spec.shape])
        .astype(np.float32)
        for n, spec in component.inputs.items()
    }  # fmt: skip
    outputs = []
    for artifact in (done.artifact, plain.artifact):
        session = load_runtime("onnx").open(artifact.components["transformer"], Device("cpu"), Options())
        outputs.append(session.run(given)["out_hidden_states"])
        session.close()
    assert np.abs(outputs[0] - outputs[1]).max() <= 1e-5 * np.ptp(outputs[1])
    assert np.ptp(outputs[1]) > 0.01


def test_what_was_reshaped_into_blocks_gets_its_shape_back(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "a.gguf"), "sdxl")
    values = np.arange(4 * 4 * 2 * 2, dtype=np.float32)
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [4, 4, 2, 2])
    writer.add_tensor("conv.weight", gguf.quants.quantize(values.reshape(2, 32), Type.Q8_0), raw_dtype=Type.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    entry = read_gguf(tmp_path / "a.gguf")["conv.weight"]
    assert entry.shape == (4, 4, 2, 2)
    made = read_tensor(unpacked({"conv.weight": entry}, tmp_path / "side")["conv.weight"])
    assert np.abs(made.reshape(-1) - values).max() <= 63 / 127


def test_damaged_files_are_refused(flux_gguf: tuple[Path, dict[str, np.ndarray]], tmp_path: Path) -> None:
    whole = flux_gguf[0].read_bytes()
    for name, content in (("cut", whole[:-40]), ("head", whole[:100]), ("text", b"no GGUF at all" * 9), ("empty", b"")):
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"truncated|no GGUF file"):
            find_source(str(path))
    with pytest.raises(BadInput, match="does not exist"):
        find_source(str(tmp_path / "none.gguf"))


def test_a_language_models_file_is_no_layout_that_is_known(tmp_path: Path) -> None:
    write(tmp_path / "llm.gguf", {"blk.0.attn_q.weight": np.zeros((32, 32), np.float32)}, lambda n, v: Type.Q8_0)
    with pytest.raises(BadInput, match="none of the layouts that are known"):
        find_source(str(tmp_path / "llm.gguf"))
