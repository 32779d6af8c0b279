"""Pictures: every kind of file to RGB, one error for each way to fail, bytes as diffusers rounds them, PNG texts."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from vitrify.core.errors import BadInput, DiskError, RuntimeFailure, UsageError
from vitrify.pipelines.images import (
    LONGEST_WORDS,
    check_png_path,
    expand,
    open_image,
    picture_paths,
    read_parameters,
    save_png,
    to_uint8,
)

WHITE, RED = (255, 255, 255), (255, 0, 0)


def noise(width: int = 40, height: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes that says it has side * side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP", "JPEG2000", "AVIF"])
def test_formats_open(form: str, tmp_path: Path) -> None:
    Image.init()
    if form not in Image.SAVE:
        pytest.skip(f"needs a Pillow built with {form}")
    path = tmp_path / "picture.bin"  # the content tells, not the name
    noise().save(path, form)
    found = open_image(path)
    assert found.mode == "RGB"
    assert found.size == (40, 30)
    if form in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(np.asarray(found), np.asarray(noise()))


def test_paths_and_files_give_the_same(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    noise().save(path)
    expected = np.asarray(noise())
    np.testing.assert_array_equal(np.asarray(open_image(str(path))), expected)
    np.testing.assert_array_equal(np.asarray(open_image(io.BytesIO(path.read_bytes()))), expected)
    with path.open("rb") as file:
        np.testing.assert_array_equal(np.asarray(open_image(file)), expected)


def test_a_turned_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise
    noise().save(tmp_path / "phone.png", exif=exif)
    expected = np.asarray(noise().transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / "phone.png")), expected)


def transparent(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    if mode == "P":
        palette = Image.new("P", (2, 1), 0)
        palette.putpalette([*RED, 0, 0, 255])
        palette.putpixel((1, 0), 1)
        return palette, {"transparency": 1}
    if mode == "RGB":
        image = Image.new("RGB", (2, 1), RED)
        image.putpixel((1, 0), (1, 2, 3))
        return image, {"transparency": (1, 2, 3)}
    image = Image.new("RGBA", (2, 1), (*RED, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    return image.convert(mode), {}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_lies_on_white(mode: str, tmp_path: Path) -> None:
    image, options = transparent(mode)
    image.save(tmp_path / "clear.png", **options)
    found = open_image(tmp_path / "clear.png")
    assert found.getpixel((1, 0)) == WHITE
    assert found.getpixel((0, 0)) == (RED if mode != "LA" else (76, 76, 76))


def test_half_transparent_red_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (255, 0, 0, 128)).save(tmp_path / "half.png")
    assert open_image(tmp_path / "half.png").getpixel((0, 0)) == (255, 127, 127)


@pytest.mark.parametrize(("mode", "suffix"), [("L", "png"), ("1", "png"), ("P", "gif"), ("CMYK", "jpg")])
def test_other_modes_become_rgb(mode: str, suffix: str, tmp_path: Path) -> None:
    noise().convert(mode).save(tmp_path / f"it.{suffix}")
    with Image.open(tmp_path / f"it.{suffix}") as image:
        expected = image.convert("RGB")
    np.testing.assert_array_equal(np.asarray(open_image(tmp_path / f"it.{suffix}")), np.asarray(expected))


@pytest.mark.parametrize("name", ["grey.png", "grey.tiff", "grey.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(name: str, tmp_path: Path) -> None:
    ramp = np.array([[0, 257, 128 * 257, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 1 65535\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(tmp_path / name)
    assert np.asarray(open_image(tmp_path / name))[0, :, 1].tolist() == [0, 1, 128, 255]


def test_what_cannot_be_read_says_what_and_how_to_fix_it(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 10)
    for form in ("png", "jpeg", "webp", "bmp", "tiff", "gif"):
        whole = io.BytesIO()
        noise(200, 200).save(whole, form)
        (tmp_path / f"half.{form}").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (tmp_path / "post.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((2, 2), 1 << 20, np.int32)).save(tmp_path / "deep.tiff")
    os.mkfifo(tmp_path / "pipe")
    expected = {
        "absent.png": "does not exist",
        ".": "is a folder, not a picture",
        "pipe": "not a regular file",
        "empty.png": "is empty",
        "text.png": "is not a picture that can be read.*PNG, JPEG",
        "cut.png": "is (not )?a picture that can",
        "post.eps": "is not a picture",
        "float.tiff": "F-mode pixels.*16-bit PNG",
        "deep.tiff": "I-mode pixels",
        **{f"half.{form}": "cannot be decoded.*download it again" for form in ("png", "jpeg", "webp", "bmp", "gif")},
        "half.tiff": "can",
    }
    for name, message in expected.items():
        with pytest.raises(BadInput, match=message) as caught:
            open_image(tmp_path / name)
        assert caught.value.what.endswith(".")
        assert caught.value.fix.endswith(".")


def test_damaged_files_are_one_error(tmp_path: Path) -> None:
    """Bytes changed at random: a picture or BadInput, never another exception."""
    rng = np.random.default_rng(3)
    for form in ("png", "jpeg", "webp", "gif", "tiff", "bmp"):
        whole = io.BytesIO()
        noise().save(whole, form)
        for _ in range(60):
            data = np.frombuffer(whole.getvalue(), np.uint8).copy()
            data[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
            try:
                found = open_image(io.BytesIO(data.tobytes()), max_pixels=1_000_000)
            except BadInput:
                continue
            assert found.mode == "RGB"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(side: int, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"too many pixels.*Scale it down"):
        open_image(bomb(tmp_path / "bomb.png", side))


def test_the_pixel_limit_is_the_callers(tmp_path: Path) -> None:
    noise().save(tmp_path / "it.png")
    assert open_image(tmp_path / "it.png", max_pixels=1200).size == (40, 30)
    with pytest.raises(BadInput, match="40x30 is 1200, the limit 1199"):
        open_image(tmp_path / "it.png", max_pixels=1199)


def test_folders_expand_to_their_pictures(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "deeper.png").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "notes.txt", ".hidden.png", "c.webp"):
        (folder / name).touch()
    (tmp_path / "single").touch()
    found = expand([tmp_path / "single", str(folder)])
    assert [path.name for path in found] == ["single", "a.png", "b.JPG", "c.webp"]
    with pytest.raises(BadInput, match=r"has no pictures \(.*\.png"):
        expand([folder / "deeper.png"])
    with pytest.raises(BadInput, match="does not exist"):
        expand([tmp_path / "absent"])


def test_bytes_are_rounded_as_diffusers_rounds_them() -> None:
    processor = pytest.importorskip("diffusers.image_processor", reason="needs diffusers as the reference")
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    images = (rng.standard_normal((2, 3, 64, 48)) * 0.7).astype(np.float32)
    edges = np.linspace(-1.1, 1.1, 48 * 64, dtype=np.float32).reshape(64, 48)
    halves = ((np.arange(48 * 64) % 255 + 0.5) / 127.5 - 1).astype(np.float32).reshape(64, 48)
    images[0, 0], images[0, 1] = edges, halves
    images[0, 2, 0, :4] = [np.inf, -np.inf, 1, -1]
    found = to_uint8(images)
    expected = processor.VaeImageProcessor().postprocess(torch.from_numpy(images), output_type="pil")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.stack([np.asarray(image) for image in expected]))


def test_values_that_are_no_numbers_are_an_error() -> None:
    images = np.zeros((1, 3, 8, 8), np.float32)
    images[0, 1, 2, 3] = np.nan
    with pytest.raises(RuntimeFailure, match=r"NaN.*fp32 or bf16"):
        to_uint8(images)


PARAMETERS: dict[str, Any] = {
    "prompt": "a red fox, ünï 😀\nsecond line",
    "negative_prompt": "blurry",
    "steps": 20,
    "scheduler": "Euler a",
    "guidance": 7.5,
    "seed": np.int64(42),
    "width": 40,
    "height": 30,
    "model": "my: model, v2",
    "source": Path("in.png"),
    "placement": {"unet": ["onnxruntime", "CPU", None]},
}


def test_a_png_says_how_it_was_made(tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    save_png(noise(), path, PARAMETERS)
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(noise()))
        text = image.info["parameters"]
    assert text == (
        "a red fox, ünï 😀\nsecond line\nNegative prompt: blurry\n"
        'Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 42, Size: 40x30, Model: "my: model, v2"'
    )
    assert read_parameters(path) == {**PARAMETERS, "seed": 42, "source": "in.png"}
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_what_is_not_given_is_left_out(tmp_path: Path) -> None:
    save_png(noise(), tmp_path / "out.png", {"prompt": "bad \udc80 bytes", "strength": 0.75})
    with Image.open(tmp_path / "out.png") as image:
        assert image.info["parameters"] == "bad ? bytes\nSize: 40x30, Denoising strength: 0.75"
    assert read_parameters(tmp_path / "out.png")["prompt"] == "bad \udc80 bytes"


def test_a_file_mode_is_the_users_own(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        save_png(noise(), tmp_path / "out.png", {})
    finally:
        os.umask(mask)
    assert (tmp_path / "out.png").stat().st_mode & 0o777 == 0o644


def test_pictures_without_our_text_say_so(tmp_path: Path) -> None:
    noise().save(tmp_path / "plain.png")
    noise().save(tmp_path / "plain.jpg")
    with pytest.raises(BadInput, match=r"does not say how it was made.*vitrify wrote"):
        read_parameters(tmp_path / "plain.png")
    with pytest.raises(BadInput, match="is not a picture"):
        read_parameters(tmp_path / "plain.jpg")
    for text, message in (("{", "damaged text"), ("[]", "holds a list")):
        info = PngImagePlugin.PngInfo()
        info.add_text("vitrify", text)
        noise().save(tmp_path / "odd.png", pnginfo=info)
        with pytest.raises(BadInput, match=message):
            read_parameters(tmp_path / "odd.png")


def test_where_nothing_can_be_written_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "taken.png", tmp_path / "file/out.png", tmp_path / "absent/out.png"):
        with pytest.raises(DiskError, match=r"could not be written: .*Free space"):
            save_png(noise(), path, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "taken.png"]
    with pytest.raises(UsageError, match=r"does not end in \.png.*out\.png"):
        save_png(noise(), tmp_path / "out.jpg", {})


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    """A size limit on files, in a process of its own, fails a write half-way as a full disk does."""
    save_png(noise(), tmp_path / "out.png", {"seed": 1})
    code = (
        "import sys, signal, resource; from pathlib import Path\n"
        "from PIL import Image\n"
        "from vitrify.core.errors import DiskError\n"
        "from vitrify.pipelines.images import save_png\n"
        "image = Image.effect_noise((300, 300), 50)\n"
        f"signal.signal({int(signal.SIGXFSZ)}, signal.SIG_IGN)\n"
        f"resource.setrlimit({resource.RLIMIT_FSIZE}, (4096, 4096))\n"
        "try:\n    save_png(image, Path(sys.argv[1]), {'seed': 2})\n"
        "except DiskError as exc:\n    print(exc.what)\n"
    )
    command = [sys.executable, "-B", "-c", code, str(tmp_path / "out.png")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "could not be written: File too large" in done.stdout
    assert read_parameters(tmp_path / "out.png") == {"seed": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["out.png"]


def test_what_json_cannot_hold_is_the_callers_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a set cannot be kept"):
        save_png(noise(), tmp_path / "out.png", {"bad": {1}})
    assert json.dumps(list(tmp_path.iterdir())) == "[]"


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("A red, red Apple!", "a-red-red-apple-5.png"),
        ("one two three four five six seven eight nine", "one-two-three-four-five-six-seven-eight-5.png"),
        ("!?", "picture-5.png"),
        ("", "picture-5.png"),
        ("\udcff fox", "fox-5.png"),  # what Python makes of an argument that is not UTF-8
    ],
)
def test_a_picture_is_named_after_prompt_and_seed(prompt: str, name: str) -> None:
    assert picture_paths(None, prompt, 5, 1) == [Path(name)]


@pytest.mark.parametrize("prompt", ["赤い狐" * 100, "x" * 1000, " ".join(["Donaudampfschifffahrt" * 5] * 8), "é" * 300])
def test_a_name_fits_a_file_system_and_is_cut_between_characters(prompt: str, tmp_path: Path) -> None:
    paths = picture_paths(None, prompt, 2**64 - 1, 12)
    assert len(set(paths)) == 12
    for path in paths:
        assert len(path.name.encode()) <= LONGEST_WORDS + len("-18446744073709551615-12.png")
        assert prompt.lower().replace(" ", "-").startswith(path.name.split("-1844")[0])
        check_png_path(tmp_path / path)
        save_png(noise(), tmp_path / path, {})
    assert len(list(tmp_path.iterdir())) == 12


def test_several_pictures_are_numbered() -> None:
    assert picture_paths(Path("a/out.png"), "fox", 1, 1) == [Path("a/out.png")]
    assert picture_paths(Path("a/out.png"), "fox", 1, 2) == [Path("a/out-1.png"), Path("a/out-2.png")]


def test_a_path_that_cannot_be_written_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.png"):
        check_png_path(tmp_path / "out.jpg")
    with pytest.raises(DiskError, match="no such folder"):
        check_png_path(tmp_path / "nothing/out.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(DiskError, match="is a folder"):
        check_png_path(tmp_path / "folder.png")
    with pytest.raises(DiskError, match="could not be written: File name too long"):
        check_png_path(tmp_path / f"{'a' * 300}.png")
    check_png_path(tmp_path / "out.png")
    assert [file.name for file in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_written_to_is_refused_before(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(DiskError, match="may not be written to"):
        check_png_path(tmp_path / "locked/out.png")
