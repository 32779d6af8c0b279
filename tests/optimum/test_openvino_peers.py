"""Optimum Intel and OpenVINO GenAI open what `vitrify compile --to openvino` writes, as it lies on disk."""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [
    pytest.mark.openvino_peers,
    pytest.mark.filterwarnings("ignore"),  # the libraries warn about each other
]

PROMPT, STEPS, GUIDANCE, SEED, SIDE = "a happy face", 10, 3.0, 5, 64
RECIPES = ("fp32", "int8-weights", "nf4-weights")
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "EXECUTION_MODE_HINT": "ACCURACY"}
"""What vitrify asks of OpenVINO; by itself it computes float32 in bfloat16 on processors that have it."""

Say = Callable[[str], None]
Made = Callable[[str], Path]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints what was measured, whatever pytest does with a test's output."""

    def print_it(text: str) -> None:
        with capsys.disabled():
            print(f"\n  {text}", end="")

    return print_it


@pytest.fixture(scope="module")
def drawing(diffusion_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The diffusion model compiled with a recipe, once. For reading only."""
    return _once(diffusion_artifact, tmp_path_factory)


@pytest.fixture(scope="module")
def labelling(emotions_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The classifier compiled with a recipe, once. For reading only."""
    return _once(emotions_artifact, tmp_path_factory)


def _once(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        from vitrify import compile_model

        if recipe not in made:
            folder = tmp_path_factory.mktemp("compiled") / "out"
            compile_model(source, folder, to="openvino", quant=recipe, verify=False)
            made[recipe] = folder
        return made[recipe]

    return make


def psnr(a: Any, b: Any) -> float:
    mse = float(((np.asarray(a, float) - np.asarray(b, float)) ** 2).mean())
    return math.inf if mse == 0 else 10 * math.log10(255**2 / mse)


def _said(found: dict[str, float]) -> str:
    return ", ".join(f"{value:.1f} dB {name}" for name, value in found.items())


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def drawn_by_vitrify(folder: Path, seed: int = SEED, **options: Any) -> Image.Image:
    import vitrify

    given = {"steps": STEPS, "guidance": GUIDANCE, "width": SIDE, "height": SIDE} | options
    pipeline = vitrify.load(folder, "cpu")
    try:
        return pipeline.generate(PROMPT, seed=seed, **given).images[0]
    finally:
        pipeline.close()


def latents(side: int = SIDE) -> Any:
    """The noise that vitrify starts from with SEED."""
    import torch

    return torch.randn(1, 4, side // 4, side // 4, generator=torch.Generator().manual_seed(SEED))


def drawn_by_genai(folder: Path, side: int = SIDE, **properties: Any) -> np.ndarray:
    """One picture, from the same noise."""
    import openvino as ov
    import openvino_genai

    class Given(openvino_genai.Generator):  # type: ignore[misc]
        def next(self) -> float:
            raise AssertionError("more noise was asked for than that to start from")

        def randn_tensor(self, shape: Any) -> Any:
            noise = latents(side).numpy()
            assert list(shape) == list(noise.shape)
            return ov.Tensor(noise)

    pipeline = openvino_genai.Text2ImagePipeline(folder, "CPU", **properties)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": side, "height": side}
    return np.array(pipeline.generate(PROMPT, generator=Given(), **given).data[0])


def test_the_environment_is_the_one_that_is_meant(say: Say) -> None:
    names = ("openvino", "optimum-intel", "openvino-genai", "openvino-tokenizers", "transformers", "diffusers", "torch")
    versions = {name: importlib.metadata.version(name) for name in names}
    say(", ".join(f"{name} {version}" for name, version in versions.items()))
    lines = {versions[name].split(".")[:2][0] for name in ("openvino", "openvino-genai", "openvino-tokenizers")}
    assert len(lines) == 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_optimum_intel_draws_the_same_picture(recipe: str, drawing: Made, say: Say) -> None:
    from optimum.intel import OVStableDiffusionPipeline

    folder = drawing(recipe)
    before = contents(folder)
    expected, other = drawn_by_vitrify(folder), drawn_by_vitrify(folder, SEED + 1)
    found = {}
    for name, config in (("as it computes by itself", {}), ("in float32", EXACT)):
        theirs = OVStableDiffusionPipeline.from_pretrained(folder, ov_config=dict(config))
        theirs.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": SIDE, "height": SIDE}
        picture = theirs(PROMPT, latents=latents(), **options).images[0]
        assert picture.size == expected.size
        found[name] = psnr(picture, expected)
        assert psnr(picture, other) < 35, "another seed draws another picture: the comparison can fail"
    say(f"Optimum Intel, {recipe}: {_said(found)}")
    assert min(found.values()) >= 40
    assert found["in float32"] >= 60
    assert contents(folder) == before


@pytest.mark.parametrize("recipe", RECIPES)
def test_genai_draws_the_same_picture(recipe: str, drawing: Made, say: Say) -> None:
    folder = drawing(recipe)
    before = contents(folder)
    expected, other = drawn_by_vitrify(folder), drawn_by_vitrify(folder, SEED + 1)
    found = {}
    for name, properties in (("as it computes by itself", {}), ("in float32", EXACT)):
        picture = drawn_by_genai(folder, **properties)
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.std() > 20, "neither black nor of one color"
        found[name] = psnr(picture, expected)
        assert psnr(picture, other) < 35, "another seed draws another picture: the comparison can fail"
    steps = np.asarray(expected).astype(int) - picture  # of the last, in float32
    say(f"OpenVINO GenAI, {recipe}: {_said(found)}, values lower by {steps.min()} to {steps.max()} of 255")
    assert min(found.values()) >= 35
    assert set(np.unique(steps)) <= {0, 1}, "it cuts to whole numbers where others round"
    assert contents(folder) == before


def test_both_take_another_size(drawing: Made, say: Say) -> None:
    from optimum.intel import OVStableDiffusionPipeline

    folder, side = drawing("fp32"), 96
    expected = drawn_by_vitrify(folder, width=side, height=side)
    theirs = OVStableDiffusionPipeline.from_pretrained(folder, ov_config=dict(EXACT))
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "width": side, "height": side}
    optimum = psnr(theirs(PROMPT, latents=latents(side), **options).images[0], expected)
    genai = psnr(drawn_by_genai(folder, side, **EXACT), expected)
    say(f"{side}x{side}: Optimum Intel {optimum:.1f} dB, OpenVINO GenAI {genai:.1f} dB")
    assert optimum >= 60
    assert genai >= 45


def test_genai_compiles_it_for_one_size(drawing: Made) -> None:
    import openvino_genai

    pipeline = openvino_genai.Text2ImagePipeline(drawing("int8-weights"))
    pipeline.reshape(1, SIDE, SIDE, GUIDANCE)
    pipeline.compile("CPU")
    given = {"num_inference_steps": 2, "guidance_scale": GUIDANCE, "width": SIDE, "height": SIDE}
    assert np.array(pipeline.generate(PROMPT, **given).data[0]).std() > 20


def test_genai_draws_over_a_picture(drawing: Made, say: Say) -> None:
    import openvino as ov
    import openvino_genai

    folder = drawing("fp32")
    start = np.asarray(drawn_by_vitrify(folder))
    pipeline = openvino_genai.Image2ImagePipeline(folder, "CPU", **EXACT)
    given = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "strength": 0.1}
    drawn = np.array(pipeline.generate(PROMPT, ov.Tensor(start[None].copy()), **given).data[0])
    say(f"OpenVINO GenAI, strength 0.1 over a picture: {psnr(drawn, start):.1f} dB from it")
    assert drawn.shape == start.shape
    assert 15 < psnr(drawn, start) < 60


@pytest.mark.parametrize("recipe", RECIPES)
def test_optimum_intel_gives_the_same_probabilities(recipe: str, labelling: Made, say: Say) -> None:
    import torch
    from optimum.intel import OVModelForImageClassification
    from transformers import ViTImageProcessor

    import vitrify

    folder = labelling(recipe)
    before = contents(folder)
    rng = np.random.default_rng(0)
    faces = [rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for _ in range(4)]
    pictures = [Image.fromarray(face).resize((224, 224)) for face in faces]
    pipeline = vitrify.load(folder, "cpu")
    ours = [{row["label"]: row["score"] for row in rows} for rows in pipeline.classify(pictures, top_k=None)]
    pipeline.close()
    pixels = ViTImageProcessor.from_pretrained(folder)(pictures, return_tensors="pt")["pixel_values"]
    found = {}
    for name, config in (("as it computes by itself", {}), ("in float32", EXACT)):
        theirs = OVModelForImageClassification.from_pretrained(str(folder), ov_config=dict(config))
        scores = torch.softmax(theirs(pixel_values=pixels).logits, -1).numpy()
        expected = np.array([[our[label] for _, label in sorted(theirs.config.id2label.items())] for our in ours])
        found[name] = float(np.abs(scores - expected).max())
        assert np.abs(scores[0] - expected[1]).max() > 0.01, "pictures differ: the comparison can fail"
    say(f"Optimum Intel, {recipe}: probabilities differ by " + ", ".join(f"{v:.1e} {n}" for n, v in found.items()))
    assert found["in float32"] <= 1e-4
    assert found["as it computes by itself"] <= 0.05
    assert contents(folder) == before


def test_a_folder_that_optimum_intel_wrote_opens(
    drawing: Made, diffusion_artifact: Path, tmp_path: Path, say: Say
) -> None:
    from diffusers import StableDiffusionPipeline
    from optimum.intel import OVStableDiffusionPipeline

    source = shutil.copytree(Path(__file__).resolve().parents[2] / "demo/models/emoji-diffusion", tmp_path / "source")
    shutil.copytree(diffusion_artifact / "tokenizer", source / "tokenizer", dirs_exist_ok=True)
    StableDiffusionPipeline.from_pretrained(source).save_pretrained(source)  # in float32
    OVStableDiffusionPipeline.from_pretrained(source, export=True, compile=False).save_pretrained(tmp_path / "theirs")
    found = psnr(drawn_by_vitrify(tmp_path / "theirs"), drawn_by_vitrify(drawing("fp32")))
    say(f"vitrify, on Optimum Intel's own folder: {found:.1f} dB")
    assert found >= 50


PROMPTS = (
    "a happy face", "A Red APPLE!!", "it's 3,14 cats' dogs & l'été", "naïve café ☕️ 😀", "  two   spaces\nnew\tline ",
    "汉字 テスト", "a (b:1.2) [c]", "", "x" * 300, "don't we'll I'VE they'RE", "@#$%^&*_+-=~`|\\", "a\u0301 \u00e1",
    "word " * 100,
)  # fmt: skip


def test_genai_reads_the_same_tokens(drawing: Made) -> None:
    import openvino_genai
    from tokenizers import Tokenizer

    folder = drawing("fp32") / "tokenizer"
    theirs, ours = openvino_genai.Tokenizer(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    ours.no_truncation()
    ours.no_padding()
    for prompt in PROMPTS:
        assert theirs.encode(prompt).input_ids.data[0].tolist() == ours.encode(prompt).ids, prompt


def test_what_is_beside_the_tokenizer_is_listed_and_hashed(drawing: Made) -> None:
    from vitrify.core.artifact import Artifact

    made = Artifact.load(drawing("fp32"), checksums=True)
    assert {"tokenizer/openvino_tokenizer.xml", "tokenizer/openvino_tokenizer.bin"} <= {f.path for f in made.others}
    assert made.unhashed() == []


def test_a_tokenizer_that_is_there_already_is_not_written_through(drawing: Made, tmp_path: Path) -> None:
    import openvino_genai

    from vitrify.export.ov_tokenizer import XML, write_ov_tokenizers

    folder = shutil.copytree(drawing("fp32") / "tokenizer", tmp_path / "root/tokenizer")
    (tmp_path / "theirs").write_text("the source's")
    (folder / XML).unlink()
    os.link(tmp_path / "theirs", folder / XML)
    assert write_ov_tokenizers(tmp_path / "root") == []
    assert (tmp_path / "theirs").read_text() == "the source's"
    assert openvino_genai.Tokenizer(folder).encode("a cat").input_ids.data[0].tolist() == [49406, 320, 2368, 49407]


@pytest.mark.parametrize(
    ("splits", "said"),
    [("UnicodeScripts", "is not converted"), ("WhitespaceSplit", "gives other tokens"), (None, "is not converted")],
)
def test_a_tokenizer_that_openvino_does_not_have_is_a_note(splits: str | None, said: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    from vitrify.export.ov_tokenizer import write_ov_tokenizers

    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer_config.json").write_text('{"unk_token": "?"}')
    if splits is None:
        (folder / "tokenizer.json").write_text("{}")
    else:
        tokenizer = Tokenizer(models.WordLevel({"?": 0, "2": 1, "photo": 2}, unk_token="?"))
        tokenizer.pre_tokenizer = getattr(pre_tokenizers, splits)()
        tokenizer.save(str(folder / "tokenizer.json"))
    (note,) = write_ov_tokenizers(tmp_path)
    assert "OpenVINO GenAI will not open" in note
    assert said in note
    assert sorted(p.name for p in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
