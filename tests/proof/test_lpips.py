"""LPIPS against the published formula written out in numpy; what a distance must be; what a folder must hold."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrify.core.errors import BadInput
from vitrify.proof.lpips import Lpips

torch = pytest.importorskip("torch", reason="needs the extra export")

SIDES = {0: 11, 3: 5, 6: 3, 8: 3, 10: 3}  # of the kernels, by torchvision's index
Weights = dict[str, np.ndarray]


Save = Callable[[Path, Weights], None]


@pytest.fixture
def folder(lpips_folder: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(lpips_folder, tmp_path / "lpips")


@pytest.fixture(scope="module")
def measure(lpips_folder: Path) -> Lpips:
    return Lpips(lpips_folder)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def windows(x: np.ndarray, side: int, stride: int) -> np.ndarray:
    """[channels, height, width] -> [channels, rows, columns, side, side]."""
    return np.lib.stride_tricks.sliding_window_view(x, (side, side), (1, 2))[:, ::stride, ::stride]


def published(weights: Weights, a: np.ndarray, b: np.ndarray) -> float:
    """Zhang et al. 2018, equation 1, in float64."""
    total = 0.0
    mean, deviation = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, y = (((p / 127.5 - 1 - mean) / deviation).transpose(2, 0, 1) for p in (a, b))
    for number, (index, side) in enumerate(SIDES.items()):
        stride, padding = (4, 2) if index == 0 else (1, side // 2)
        features = []
        for value in (x, y):
            if index in (3, 6):
                value = windows(value, 3, 2).max((3, 4))
            padded = np.pad(value, ((0, 0), (padding, padding), (padding, padding)))
            kernel, bias = weights[f"features.{index}.weight"], weights[f"features.{index}.bias"]
            made = np.einsum("crsij,ocij->ors", windows(padded, side, stride), kernel, optimize=True)
            features.append(np.maximum(made + bias[:, None, None], 0))
        x, y = features
        unit = [f / (np.sqrt((f**2).sum(0, keepdims=True)) + 1e-10) for f in features]
        weighted = weights[f"lin{number}.model.1.weight"].reshape(-1, 1, 1) * (unit[0] - unit[1]) ** 2
        total += weighted.sum(0).mean()
    return float(total)


@pytest.mark.parametrize("size", [(31, 31), (64, 64), (48, 100)])
def test_the_distance_is_the_published_formula(measure: Lpips, lpips_weights: Weights, size: tuple[int, int]) -> None:
    a, b = picture(*size), picture(*size, seed=1)
    expected = published(lpips_weights, a, b)
    assert expected > 1e-3
    assert measure.distance(a, b) == pytest.approx(expected, rel=1e-4)


def test_equal_pictures_are_at_no_distance(measure: Lpips) -> None:
    assert measure.distance(picture(64, 64), picture(64, 64)) == 0
    assert measure.measure("", Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "red")) == {"lpips": 0}


def test_the_distance_is_the_same_both_ways(measure: Lpips) -> None:
    a, b = picture(64, 64), picture(64, 64, seed=1)
    assert measure.distance(a, b) == pytest.approx(measure.distance(b, a), rel=1e-6)


def test_the_distance_grows_with_noise(measure: Lpips) -> None:
    slope = np.linspace(40, 200, 64)[None, :, None] * np.ones((64, 1, 3))
    noise = np.random.default_rng(2).normal(0, 1, slope.shape)
    given = [np.clip(slope + size * noise, 0, 255).astype(np.uint8) for size in (0, 2, 8, 25, 60)]
    found = [measure.distance(given[0], one) for one in given]
    assert found[0] == 0
    assert found == sorted(set(found)), found


def test_weights_are_found_in_either_kind_of_file(
    measure: Lpips, lpips_weights: Weights, save_weights: Save, tmp_path: Path
) -> None:
    save_weights(tmp_path / "all.pth", lpips_weights)
    read = Lpips(tmp_path)
    assert list(read.files) == ["all.pth"]
    assert set(measure.files) == {"alexnet.safetensors", "alex.pth"}
    assert all(len(digest) == 64 for digest in measure.files.values())
    a, b = picture(40, 40), picture(40, 40, seed=1)
    assert read.distance(a, b) == measure.distance(a, b)


def test_a_picture_that_is_too_small_is_refused(measure: Lpips) -> None:
    with pytest.raises(BadInput, match=r"40x30 pixels .* AlexNet needs 31"):
        measure.distance(picture(30, 40), picture(30, 40))


Damage = Callable[[Path, Weights, Save], object]


def change(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """One weight changed in the file that has it."""
    kept = ("features", "alexnet.safetensors") if name.startswith("features") else ("lin", "alex.pth")

    def changed(folder: Path, weights: Weights, save: Save) -> None:
        save(
            folder / kept[1], {n: w for n, w in (weights | {name: to(weights[name])}).items() if n.startswith(kept[0])}
        )

    return changed


def again(folder: Path, weights: Weights, save: Save) -> None:
    save(folder / "vgg.pth", {n: w for n, w in weights.items() if n.startswith("lin")})


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f, *_: (f / "alex.pth").unlink(), r"lacks lin0\.model\.1\.weight, lin1\.model\.1.* and 2 more"),
        (lambda f, *_: (f / "alexnet.safetensors").unlink(), r"lacks features\.0\.weight, .* and 7 more"),
        (change("features.3.weight", lambda w: w[:, :, :3, :3]), r"features\.3\.weight .* shape \[192, 64, 3, 3\]"),
        (change("lin1.model.1.weight", lambda w: w[:, :128]), r"lin1.*\[1, 128, 1, 1\], .* \[1, 192, 1, 1\]"),
        (change("features.6.bias", lambda w: w * np.nan), r"features\.6\.bias holds values that are not numbers"),
        (again, r"lin0\.model\.1\.weight twice: in alex\.pth and in vgg\.pth"),
        (lambda f, *_: (f / "alex.pth").write_bytes(b"no weights"), r"alex\.pth cannot be read as weights"),
        (lambda f, *_: (f / "alex.pth").write_bytes(b""), r"alex\.pth cannot be read as weights"),
        (lambda f, *_: (f / "alexnet.safetensors").write_bytes(b"x" * 64), r"alexnet\.safetensors cannot be read"),
        (lambda f, *_: torch.save([1, 2], f / "alex.pth"), r"alex\.pth holds a list, not weights by name"),
        (lambda f, *_: torch.save({"lin0.model.1.weight": f}, f / "alex.pth"), r"alex\.pth cannot be read as weights"),
        (lambda f, *_: torch.save({"lin0.model.1.weight": 7}, f / "alex.pth"), r"alex\.pth: lin0.* the shape \[\]"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_good_says_why(
    folder: Path, lpips_weights: Weights, save_weights: Save, damage: Damage, said: str
) -> None:
    damage(folder, lpips_weights, save_weights)
    with pytest.raises(BadInput, match=said) as caught:
        Lpips(folder)
    assert caught.value.fix


def test_a_folder_without_weights_says_where_they_are_had(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").write_text("nothing")
    for path, said in ((tmp_path, r"holds no \.safetensors"), (tmp_path / "no", "is not there"),
                       (tmp_path / "readme.txt", "is no folder")):  # fmt: skip
        with pytest.raises(BadInput, match=said) as caught:
            Lpips(path)
        assert "alexnet-owt-7be5be79.pth" in caught.value.fix
