"""Pictures of a proof beside the manifest: what is written, listed and read back; nothing is overwritten."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadArtifact, BadInput
from vitrify.proof.evidence import Pair, difference, keep_pictures, kept_pairs, remove_pictures


def picture(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def pixels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture)


def drawn(artifact: Artifact, count: int) -> Artifact:
    """The artifact with the figures of so many pictures."""
    images: dict[str, Any] = {"pictures": count, "drawn": [{"prompt": f"p{n}", "seed": n} for n in range(count)]}
    return replace(artifact, proof={**artifact.proof, "images": images})


@pytest.fixture
def artifact(emotions_artifact: Path, tmp_path: Path) -> Artifact:
    """Any will do: what kind of model it is makes no difference here."""
    return Artifact.load(shutil.copytree(emotions_artifact, tmp_path / "artifact"))


def test_pictures_come_back_as_they_were(artifact: Artifact) -> None:
    pairs = [Pair(picture(0), picture(1)), Pair(picture(2), picture(3))]
    kept = keep_pictures(drawn(artifact, 2), pairs)
    kept.save()
    found = Artifact.load(artifact.root, checksums=True)
    assert [f.path for f in found.others if f.path.startswith("proof/")] == sorted(
        f"proof/{hashlib.sha256((artifact.root / f.path).read_bytes()).hexdigest()[:16]}.png"
        for f in found.others
        if f.path.startswith("proof/")
    )
    assert len(set(found.others) - set(artifact.others)) == 4
    for before, after in zip(pairs, kept_pairs(found), strict=True):
        assert (pixels(after.reference) == pixels(before.reference)).all()
        assert (pixels(after.artifact) == pixels(before.artifact)).all()
    assert found.proof["images"]["drawn"][1]["prompt"] == "p1"
    assert found.unhashed() == []
    assert not list((artifact.root / "proof").glob(".*")), "no scratch file is left"


def test_equal_pictures_are_one_file(artifact: Artifact) -> None:
    kept = keep_pictures(drawn(artifact, 1), [Pair(picture(0), picture(0))])
    (entry,) = kept.proof["images"]["drawn"]
    assert entry["reference"] == entry["artifact"]
    assert len(list((artifact.root / "proof").iterdir())) == 1


def test_an_earlier_proofs_pictures_stay_until_the_manifest_is_saved(artifact: Artifact) -> None:
    first = keep_pictures(drawn(artifact, 1), [Pair(picture(0), picture(1))])
    first.save()
    second = keep_pictures(drawn(first, 1), [Pair(picture(0), picture(2))])
    assert Artifact.load(artifact.root, checksums=True).proof == first.proof, "a crash here leaves a whole artifact"
    second.save()
    remove_pictures(first, second)
    found = Artifact.load(artifact.root, checksums=True)
    entry = found.proof["images"]["drawn"][0]
    assert {f"proof/{p.name}" for p in (artifact.root / "proof").iterdir()} == {entry["reference"], entry["artifact"]}
    assert len(found.others) == len(artifact.others) + 2


def test_a_proof_without_pictures_writes_none(artifact: Artifact) -> None:
    assert keep_pictures(artifact, []) is artifact
    assert not (artifact.root / "proof").exists()
    assert kept_pairs(artifact) == []


def test_a_picture_that_was_changed_is_found(artifact: Artifact) -> None:
    keep_pictures(drawn(artifact, 1), [Pair(picture(0), picture(1))]).save()
    file = next((artifact.root / "proof").iterdir())
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(BadArtifact, match="is not the file that was built"):
        Artifact.load(artifact.root, checksums=True)


def test_a_damaged_picture_is_named(artifact: Artifact) -> None:
    kept = keep_pictures(drawn(artifact, 1), [Pair(picture(0), picture(1))])
    name = kept.proof["images"]["drawn"][0]["reference"]
    (artifact.root / name).write_bytes(b"no picture at all")
    with pytest.raises(BadInput, match=name):
        kept_pairs(kept)


@pytest.mark.parametrize("named", ["../secret.png", "/etc/passwd", "model.safetensors", "", None, ["a"], 7])
def test_what_the_manifest_does_not_list_is_not_opened(artifact: Artifact, named: Any) -> None:
    (artifact.root.parent / "secret.png").write_bytes(b"")
    made = drawn(artifact, 1)
    made.proof["images"]["drawn"][0] |= {"reference": named, "artifact": named}
    assert kept_pairs(made) == [None]


@pytest.mark.parametrize("images", ["not run", {}, {"drawn": "x"}, {"drawn": [7, {}]}])
def test_manifests_of_other_versions_have_no_pictures(artifact: Artifact, images: Any) -> None:
    found = kept_pairs(replace(artifact, proof={"images": images}))
    assert set(found) <= {None}


@pytest.mark.parametrize(("off", "factor"), [(0, 0), (1, 200), (2, 100), (12, 20), (60, 2), (200, 1)])
def test_the_difference_is_amplified_as_far_as_it_goes(off: int, factor: int) -> None:
    grey = np.full((20, 20, 3), 30, np.uint8)
    shown, by = difference(Pair(Image.fromarray(grey), Image.fromarray(grey + np.uint8(off))))
    assert by == factor
    assert (pixels(shown) == off * factor).all()


def test_one_pixel_that_is_far_off_does_not_hide_the_rest() -> None:
    a = np.full((20, 20, 3), 30, np.uint8)
    b = a + np.uint8(2)
    b[0, 0] = 255
    shown, by = difference(Pair(Image.fromarray(a), Image.fromarray(b)))
    assert by == 100
    assert (pixels(shown)[1:] == 200).all()
    assert (pixels(shown)[0, 0] == 255).all(), "clipped, not wrapped round"
    lonely = np.array(a)
    lonely[3, 3, 0] += 9
    shown, by = difference(Pair(Image.fromarray(a), Image.fromarray(lonely)))
    assert by == 200
    assert pixels(shown)[3, 3, 0] == 255
