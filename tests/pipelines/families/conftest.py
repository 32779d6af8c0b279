"""Tiny random models of every family: made here, saved as diffusers saves models, and compared with what it draws.

A family's tests make their own diffusers pipeline (`save_tiny` gives it weights that show something), export it once,
and hold ours to it with `same_as_diffusers`.
"""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitrify.proof.quality import psnr

GAIN = 1.2  # of random layers: lower ones lose what they are told, higher ones make everything black or white


@dataclass(frozen=True)
class Theirs:
    """diffusers' pipelines of one model. kinds: task -> class. parts: what each is made of. options: of each."""

    kinds: Mapping[str, Any]
    parts: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)

    def pipe(self, task: str, scheduler: Any = None) -> Any:
        """The pipeline of a task, with a fresh scheduler: they remember their last run."""
        own = scheduler or self.parts["scheduler"]
        fresh = type(own).from_config(own.config)
        pipe = self.kinds[task](**{**self.parts, "scheduler": fresh}, **self.options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(
        self,
        prompts: Sequence[str],
        *,
        seed: int,
        width: int,
        height: int,
        steps: int,
        guidance: float,
        negative_prompt: str = "",
        scheduler: Any = None,
        image: Any = None,
        mask: Any = None,
        strength: float | None = None,
    ) -> list[np.ndarray]:
        """The pictures of one request, in our words; scheduler: an object of diffusers, or the model's own."""
        import torch

        pipe = self.pipe("text2img" if image is None else "img2img" if mask is None else "inpaint", scheduler)
        given: dict[str, Any] = {"width": width, "height": height}
        if image is not None:
            images = [image] * len(prompts) if isinstance(image, Image.Image) else list(image)
            given = {"image": [i.resize((width, height), Image.Resampling.LANCZOS) for i in images]}
            given["strength"] = strength
            if "width" in inspect.signature(type(pipe).__call__).parameters:  # else the picture's own
                given |= {"width": width, "height": height}
        if mask is not None:
            masks = [mask] * len(prompts) if isinstance(mask, Image.Image) else list(mask)
            given |= {"mask_image": masks, "image": images, "width": width, "height": height}
        if negative_prompt:
            given["negative_prompt"] = [negative_prompt] * len(prompts)
        streams = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        done = pipe(list(prompts), generator=streams, num_inference_steps=steps, guidance_scale=guidance, **given)
        return [np.asarray(one) for one in done.images]


@pytest.fixture(scope="session")
def theirs_of() -> type[Theirs]:
    return Theirs


@pytest.fixture(scope="session")
def same_as_diffusers() -> Callable[..., None]:
    """same_as_diffusers(ours, theirs, prompts, scheduler=(name, object of diffusers), **request): at least 45 dB."""

    def check(
        ours: Any, theirs: Theirs, prompts: Sequence[str], *, scheduler: tuple[str, Any] | None = None, **request: Any
    ) -> None:
        name, kind = scheduler or (None, None)
        expected = theirs.draw(prompts, scheduler=kind, **request)
        result = ours.generate(list(prompts), scheduler=name, **request)
        assert len(result.images) == len(expected)
        for one, wanted in zip(result.images, expected, strict=True):
            assert np.asarray(one).shape == wanted.shape == (request["height"], request["width"], 3)
            assert wanted.std() > 10, "a grey square would prove nothing"
            assert psnr(np.asarray(one), wanted) >= 45

    return check


@pytest.fixture
def same_with_lora(tmp_path: Path) -> Callable[..., None]:
    """same_with_lora(pipe, ours, theirs): a LoRA of the denoiser does to ours what it does to diffusers' `pipe`, 45 dB.

    ours(loras) and theirs() draw one picture; taken off again, ours draws the plain one to the last bit.
    """

    def check(pipe: Any, ours: Callable[[dict[str, float]], np.ndarray], theirs: Callable[[], np.ndarray]) -> None:
        path = save_lora(pipe, tmp_path / "style.safetensors")
        plain = ours({})
        given = ours({str(path): 0.8})
        pipe.load_lora_weights(path, adapter_name="style")
        try:
            pipe.set_adapters(["style"], [0.8])
            wanted = theirs()
        finally:
            pipe.unload_lora_weights()
        assert wanted.std() > 10, "a grey square would prove nothing"
        assert psnr(plain, wanted) < 35, "a LoRA that changes nothing would prove nothing"
        assert psnr(given, wanted) >= 45
        np.testing.assert_array_equal(ours({}), plain)

    return check


def save_lora(pipe: Any, path: Path, rank: int = 3) -> Path:
    """A random LoRA of the denoiser's attention, named as PEFT and diffusers name it."""
    import torch
    from safetensors.torch import save_file

    component = "unet" if "unet" in pipe.components else "transformer"
    generator, tensors = torch.Generator().manual_seed(17), {}
    for name, module in pipe.components[component].named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            size = 0.5 * float(module.weight.detach().std()) * rank**-0.5
            down = torch.randn(rank, module.in_features, generator=generator)
            up = torch.randn(module.out_features, rank, generator=generator) * size
            tensors |= {f"{component}.{name}.lora_A.weight": down, f"{component}.{name}.lora_B.weight": up}
    assert tensors
    save_file(tensors, path)
    return path


@pytest.fixture(scope="session")
def save_tiny() -> Callable[..., Path]:
    """save_tiny(pipe, folder) gives the modules of a diffusers pipeline lively weights, and saves it; the folder."""

    def save(pipe: Any, folder: Path, seed: int = 11) -> Path:
        import torch

        generator = torch.Generator().manual_seed(seed)
        for module in (m for m in pipe.components.values() if isinstance(m, torch.nn.Module)):
            enliven(module, generator)
        pipe.save_pretrained(folder)
        return folder

    return save


def enliven(module: Any, generator: Any) -> None:
    """Random biases and norms, and layers that neither swallow nor blow up what they are given."""
    import torch

    module.eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            else:
                drawn = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(drawn * GAIN * parameter[0].numel() ** -0.5)


@pytest.fixture(scope="session")
def clip_words(diffusion_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """clip_words(pad=None): CLIP's tokenizer, as transformers opens it; pad: its padding, where it is not its end."""

    def make(pad: str | None = None) -> Any:
        import transformers

        folder = tmp_path_factory.mktemp("words") / "tokenizer"
        shutil.copytree(diffusion_source / "tokenizer", folder)
        more = {} if pad is None else {"pad_token": pad}
        return transformers.CLIPTokenizer.from_pretrained(folder, **more)

    return make


@pytest.fixture(scope="session")
def photo() -> Callable[..., Image.Image]:
    """photo(width, height, seed=0): coarse colours with fine noise, so that a resize shows."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        rng = np.random.default_rng(seed)
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int32)
        return Image.fromarray((pixels + rng.integers(-20, 21, pixels.shape)).clip(0, 255).astype(np.uint8))

    return make


@pytest.fixture(scope="session")
def half_mask() -> Callable[[int, int], Image.Image]:
    """half_mask(width, height): the right half is white."""

    def make(width: int, height: int) -> Image.Image:
        mask = np.zeros((height, width), np.uint8)
        mask[:, width // 2 :] = 255
        return Image.fromarray(mask)

    return make


@pytest.fixture(scope="session")
def t5_words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A T5 tokenizer of few pieces, as transformers opens it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(["a red apple on a table", "a blue car", "a green car, blurry and dark"] * 4, trainer)
    folder = tmp_path_factory.mktemp("t5-words")
    tokenizer.save(str(folder / "tokenizer.json"))
    return transformers.T5TokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), extra_ids=0, model_max_length=512
    )


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def loaded(request: pytest.FixtureRequest, tiny: Any) -> Iterator[Callable[[str], tuple[Any, Any]]]:
    """loaded(name): our pipeline on one of the runtimes, and diffusers' side, of a model of the file's own `tiny`."""
    from vitrify.pipelines.load import load as load_artifact

    pytest.importorskip("openvino" if request.param == "openvino" else "onnxruntime")
    opened: dict[str, Any] = {}

    def load(name: str) -> tuple[Any, Any]:
        theirs, artifact = tiny(name)
        if name not in opened:
            opened[name] = load_artifact(artifact, "cpu", runtime=request.param)
        return opened[name], theirs

    yield load
    for one in opened.values():
        one.close()
