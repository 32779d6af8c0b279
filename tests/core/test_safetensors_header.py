"""Headers: what is read equals what the safetensors library reads, and nothing but BadInput comes out of damage."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vitrify.core.errors import BadInput
from vitrify.core.safetensors_header import hash_tensor, open_checkpoint, read_header, read_tensor


def tensors() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.standard_normal((3, 4)).astype(np.float32),
        "b": rng.standard_normal((5,)).astype(np.float16),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "wide": rng.standard_normal((2, 2)),
        "flags": np.array([True, False, True]),
    }


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def row(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path, metadata={"format": "pt"})
    entries = read_header(path)
    loaded = load_file(path)
    assert set(entries) == set(loaded)
    for name, entry in entries.items():
        assert entry.shape == loaded[name].shape
        assert entry.file == path
        np.testing.assert_array_equal(read_tensor(entry), loaded[name])
        assert hash_tensor(entry) == hashlib.sha256(loaded[name].tobytes()).hexdigest()
        assert path.read_bytes()[entry.offset : entry.offset + entry.length] == loaded[name].tobytes()


@pytest.mark.parametrize("name", ["a.weight", "b", "wide"])
def test_read_as_float32(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path)
    read = read_tensor(read_header(path)[name], dtype="float32")
    assert read.dtype == np.float32
    assert read.flags.writeable
    np.testing.assert_array_equal(read, tensors()[name].astype(np.float32))


def test_bfloat16_is_exact(tmp_path: Path) -> None:
    values = np.array([1.0, -2.5, 3.140625, np.inf, 0.0], np.float32)
    bits = (values.view(np.uint32) >> 16).astype("<u2")
    entry = read_header(write(tmp_path / "m", {"t": row("BF16", (5,), (0, 10))}, bits.tobytes()))["t"]
    np.testing.assert_array_equal(read_tensor(entry), bits)
    np.testing.assert_array_equal(read_tensor(entry, dtype="float32"), values)


def test_float32_of_an_integer_is_refused(tmp_path: Path) -> None:
    entry = read_header(write(tmp_path / "m", {"t": row("I8", (4,))}, b"1234"))["t"]
    with pytest.raises(BadInput, match=r"'t' in .* is I8.*not quantized"):
        read_tensor(entry, dtype="float32")
    with pytest.raises(ValueError, match="float32"):
        read_tensor(entry, dtype="int8")


def test_a_blocked_hash_equals_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitrify.core.safetensors_header.BLOCK", 7)
    entry = read_header(write(tmp_path / "m", {"t": row("U8", (100,), (0, 100))}, bytes(range(100))))["t"]
    assert hash_tensor(entry) == hashlib.sha256(bytes(range(100))).hexdigest()


LIES: list[tuple[str, Any, bytes, str]] = [
    ("unknown dtype", {"t": row("F33")}, b"1234", r"'t' in .*m\.safetensors.*dtype 'F33' is unknown"),
    ("negative", {"t": row(offsets=(-4, 0))}, b"1234", "no .begin, end."),
    ("reversed", {"t": row(offsets=(4, 0))}, b"1234", "no .begin, end."),
    ("three offsets", {"t": row(offsets=(0, 2, 4))}, b"1234", "no .begin, end."),
    ("bool offset", {"t": row(offsets=(False, 4))}, b"1234", "no .begin, end."),
    ("size", {"t": row(shape=(2,))}, b"1234", r"F32 \[2\] takes 8 bytes, its data_offsets span 4"),
    ("negative shape", {"t": row(shape=(-1,))}, b"1234", "no list of sizes"),
    ("float shape", {"t": row(shape=(1.0,))}, b"1234", "no list of sizes"),
    ("huge shape", {"t": row(shape=(2**62,) * 400)}, b"1234", "no list of sizes"),
    ("overflow", {"t": row(shape=(2**62, 2**62))}, b"1234", "takes"),
    ("overlap", {"a": row(), "b": row(offsets=(2, 6))}, b"123456", "'b' .*overlaps"),
    ("hole", {"a": row(), "b": row(offsets=(6, 10))}, b"1234567890", "'b' .*hole"),
    ("no tensor's bytes", {"a": row()}, b"123456", "ends in 2 bytes"),
    ("beyond", {"a": row(), "b": row(offsets=(4, 8))}, b"12345", "3 bytes are missing, from tensor 'b'"),
    ("extra key", {"t": {**row(), "more": 1}}, b"1234", "header row"),
    ("no row", {"t": []}, b"", "header row"),
    ("metadata", {"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ("surrogate", b'{"\\ud800": {}}', b"", "no text"),
    ("twice", b'{"t": {}, "t": {}}', b"", "'t' occurs twice"),
    ("broken", b'{"t": ', b"", "broken header"),
    ("no utf-8", b'{"\xff": 1}', b"", "broken header"),
    ("deep", b'{"t": ' + b"[" * 100_000, b"", "broken header"),
    ("long number", b'{"t": ' + b"9" * 5000 + b"}", b"", "broken header"),
]


@pytest.mark.parametrize(("header", "data", "says"), [lie[1:] for lie in LIES], ids=[lie[0] for lie in LIES])
def test_a_lie_is_named(tmp_path: Path, header: Any, data: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        read_header(write(tmp_path / "m.safetensors", header, data))


def test_truncation_says_how_many_bytes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(BadInput, match=r"truncated: 5 bytes are missing.*Download it again"):
        read_header(path)
    path.write_bytes(whole[:50])
    with pytest.raises(BadInput, match=r"truncated: \d+ bytes of its header are missing"):
        read_header(path)
    for size in (0, 1, 7, 8, 9):
        path.write_bytes(whole[:size])
        with pytest.raises(BadInput):
            read_header(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(BadInput, match="does not exist"):
        read_header(path)
    with pytest.raises(BadInput, match="is a folder"):
        read_header(tmp_path)
    path.write_bytes(pickle.dumps({"a": list(range(100))}))
    with pytest.raises(BadInput, match=r"pickle checkpoint.*safetensors"):
        read_header(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data.pkl", b"x")
    with pytest.raises(BadInput, match="pickle checkpoint"):
        read_header(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n")
    with pytest.raises(BadInput, match="git lfs pull"):
        read_header(path)
    path.write_bytes(b"<!doctype html><html>not found</html>")
    with pytest.raises(BadInput, match="not a safetensors file"):
        read_header(path)
    write(path, b"{" + b" " * 100, length=100_000_001)
    with pytest.raises(BadInput, match="at most 100000000"):
        read_header(path)


def test_a_header_whose_length_looks_like_a_pickle(tmp_path: Path) -> None:
    # 0x0280 bytes: on disk 80 02, the first bytes of a protocol 2 pickle.
    text = json.dumps({"t": row()}).encode().ljust(0x0280)
    assert list(read_header(write(tmp_path / "m", text, b"1234"))) == ["t"]


def test_flipped_header_bytes_never_raise_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(tensors(), path)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    rng = random.Random(0)
    parsed = 0
    for _ in range(1000):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            damaged[rng.randrange(end)] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            entries = read_header(path)
        except BadInput:
            continue
        parsed += 1
        assert sum(entry.length for entry in entries.values()) == len(whole) - end
        for entry in entries.values():
            assert end <= entry.offset <= entry.offset + entry.length <= len(whole)
            assert len(hash_tensor(entry)) == 64
    assert parsed  # a flip inside a name is still a valid file


def shards(folder: Path, index: str, names: tuple[str, str]) -> None:
    save_file({"a": np.ones(2, np.float32)}, folder / names[0])
    save_file({"b": np.ones(3, np.float32)}, folder / names[1])
    weight_map = {"a": names[0], "b": names[1]}
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 20}, "weight_map": weight_map}))


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("diffusion_pytorch_model.safetensors", None),
        ("model.safetensors", None),
        ("diffusion_pytorch_model.fp16.safetensors", "fp16"),
        ("model.fp16.safetensors", "fp16"),
    ],
)
def test_single_files(tmp_path: Path, name: str, variant: str | None) -> None:
    save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    assert set(open_checkpoint(tmp_path, variant=variant)) == {"a"}
    other = None if variant else "fp16"
    with pytest.raises(BadInput, match=rf"it has {name}"):
        open_checkpoint(tmp_path, variant=other)


@pytest.mark.parametrize(
    ("index", "names", "variant"),
    [
        (
            "model.safetensors.index.json",
            ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
            None,
        ),
        (
            "model.safetensors.index.fp16.json",
            ("model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"),
            "fp16",
        ),
        (
            "diffusion_pytorch_model.safetensors.index.fp16.json",
            ("diffusion_pytorch_model-00001-of-00002.fp16.safetensors", "diffusion_pytorch_model-2.fp16.safetensors"),
            "fp16",
        ),
    ],
)
def test_shards(tmp_path: Path, index: str, names: tuple[str, str], variant: str | None) -> None:
    shards(tmp_path, index, names)
    found = open_checkpoint(tmp_path, variant=variant)
    assert {name: entry.file.name for name, entry in found.items()} == {"a": names[0], "b": names[1]}
    (tmp_path / names[1]).unlink()
    with pytest.raises(BadInput, match=rf"lacks the shards {names[1]}"):
        open_checkpoint(tmp_path, variant=variant)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "no index"),
        ("[]", "no index"),
        ("{}", "no index"),
        ('{"weight_map": {"a": 1}}', "no index"),
        ('{"weight_map": {"a": "../s1"}}', "no file name"),
        ('{"weight_map": {"b": "s1"}}', "'b' is in s1; it is not"),
        ('{"weight_map": {"a": "s1", "b": "s2"}}', "'a' is in both"),
    ],
)
def test_a_lying_index(tmp_path: Path, text: str, says: str) -> None:
    for name in ("s1", "s2"):
        save_file({"a": np.ones(2, np.float32)}, tmp_path / name)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(BadInput, match=says):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "v1-5.ckpt", "model.pt", "model.pth"])
def test_a_pickle_only_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"x")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(BadInput, match=rf"{name} is a pickle checkpoint.*Convert it"):
        open_checkpoint(tmp_path)


def test_folders_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected diffusion_pytorch_model\.safetensors"):
        open_checkpoint(tmp_path)
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(BadInput, match=r"only tf_model.h5 of another framework"):
        open_checkpoint(tmp_path)
    with pytest.raises(BadInput, match="is not a folder"):
        open_checkpoint(tmp_path / "none")
