"""CLIP score: how well a picture is what its prompt says, by a model that reads both.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021, with the factor 100 that
torchmetrics and most papers on drawing use: 100 times the cosine of both embeddings, at least 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from ..core.errors import BadInput
from .measures import check_folder, hashes_of

_FIX = (
    "Give a folder that transformers saved of a CLIP model: config.json, weights, tokenizer, preprocessor_config.json."
)

_NEEDED = {
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "settings of pictures": ("preprocessor_config.json", "processor_config.json"),
}


class Clip:
    """A CLIP model of transformers, in float32 on the CPU.

    Args:
        folder: as `save_pretrained` of a CLIPModel and its CLIPProcessor leaves it. Nothing is downloaded.

    Raises:
        BadInput: it is another kind of model, or a file or a weight is missing, damaged or of another shape.
    """

    def __init__(self, folder: Path) -> None:
        import torch

        with _quiet():
            from transformers import CLIPModel, CLIPProcessor

        check_folder(folder, "a CLIP model", _FIX)
        _check_config(folder / "config.json")
        if not any(folder.glob("*.safetensors")):
            raise BadInput(f"{folder} holds no weights as safetensors.", _FIX)
        for what, names in _NEEDED.items():
            if not any((folder / name).exists() for name in names):
                raise BadInput(f"{folder} holds no {what} ({' or '.join(names)}).", _FIX)
        try:
            with _quiet():
                self._processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
                loaded, told = CLIPModel.from_pretrained(
                    folder,
                    local_files_only=True,
                    dtype=torch.float32,
                    use_safetensors=True,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # named below
                )
        except ImportError:
            raise
        except Exception as exc:  # OSError, ValueError, RuntimeError, SafetensorError: whatever a file is wrong in
            said = (str(exc).splitlines() or [""])[0]
            raise BadInput(f"{folder} does not open as a CLIP model ({type(exc).__name__}: {said}).", _FIX) from exc
        # transformers would draw these at random and score with them
        wrong = {"lacks": told["missing_keys"], "has in another shape": (key for key, *_ in told["mismatched_keys"])}
        for what, keys in wrong.items():
            named = sorted(map(str, keys))
            if named:
                more = f" and {len(named) - 3} more" if len(named) > 3 else ""
                raise BadInput(f"{folder} {what}: {', '.join(named[:3])}{more}.", _FIX)
        words, known = len(self._processor.tokenizer), int(loaded.config.text_config.vocab_size)
        if words > known:
            raise BadInput(f"{folder} has a tokenizer of {words} tokens, and a model that knows {known}.", _FIX)
        self._model: Any = loaded.eval()
        self.files: Mapping[str, str] = hashes_of([*folder.glob("*.safetensors")])

    def measure(self, prompt: str, reference: Image.Image, given: Image.Image) -> dict[str, float]:
        """The scores of both pictures, 0..100, and the cosine between the two, -1..1.

        A prompt that is longer than the model reads is cut, as torchmetrics does.
        """
        import torch

        longest = int(self._model.config.text_config.max_position_embeddings)
        with torch.no_grad():
            inputs = self._processor(
                text=[prompt], images=[reference, given], return_tensors="pt", truncation=True, max_length=longest
            )
            read = self._model(**inputs)
            # transformers gives them as unit vectors; said again, so that the figure does not hang on it
            images = torch.nn.functional.normalize(read.image_embeds, dim=-1)
            text = torch.nn.functional.normalize(read.text_embeds, dim=-1)
            of_reference, of_given = (images @ text[0]).tolist()
            likeness = float(images[0] @ images[1])
        return {
            "clip_score": max(100 * of_given, 0.0),
            "clip_score_reference": max(100 * of_reference, 0.0),
            "clip_similarity": likeness,
        }


def _check_config(path: Path) -> None:
    try:
        kind = json.loads(path.read_text("utf-8")).get("model_type")
    except FileNotFoundError as exc:
        raise BadInput(f"{path.parent} has no config.json.", _FIX) from exc
    except (OSError, ValueError, AttributeError) as exc:
        raise BadInput(f"{path} cannot be read as a model's config: {exc}.", _FIX) from exc
    if kind != "clip":
        raise BadInput(f"{path.parent} holds a model of the type {kind!r}, not 'clip'.", _FIX)


@contextmanager
def _quiet() -> Iterator[None]:
    """No word of transformers, such as that it prepares pictures with Pillow where torchvision is not there."""
    from ..runtimes.torch.modules import no_bars, quiet_imports

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with quiet_imports(), no_bars():
            yield
    finally:
        logger.setLevel(level)
