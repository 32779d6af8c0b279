"""What is PyTorch's own: checkpoints that its libraries would complete with random numbers, and its thread count."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
pytest.importorskip("diffusers", reason="needs vitrify[torch]")

from safetensors.torch import load_file, save_file  # noqa: E402

from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, RuntimeFailure  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.torch import RUNTIME  # noqa: E402


def rewritten(model: Any, change: Callable[[dict[str, Any]], object]) -> Any:
    path = next(model.source.glob("*.safetensors"))
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    return model.components["torch"]


@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_weight_that_is_not_there_is_never_made_up(request: Any, checkpoint: Any, name: str) -> None:
    model = checkpoint(request.getfixturevalue(name))
    lost = {"vit": "classifier.bias", "unet": "conv_out.bias"}[name]
    component = rewritten(model, lambda t: t.pop(lost))
    with pytest.raises(BadArtifact, match=rf"lacks {lost}"):
        RUNTIME.open(component, Device("cpu"), Options())


@pytest.mark.parametrize("name", ["vit", "unet"])
def test_a_weight_of_another_shape_is_refused(request: Any, checkpoint: Any, name: str) -> None:
    model = checkpoint(request.getfixturevalue(name))
    wrong = {"vit": "classifier.bias", "unet": "conv_out.bias"}[name]
    component = rewritten(model, lambda t: t.update({wrong: torch.zeros(11)}))
    with pytest.raises(BadArtifact) as caught:
        RUNTIME.open(component, Device("cpu"), Options())
    assert caught.value.fix


def test_a_pickle_is_not_opened(vit: Any, checkpoint: Any, tmp_path: Path) -> None:
    model = checkpoint(vit)
    path = next(model.source.glob("*.safetensors"))
    torch.save(load_file(path), model.source / "pytorch_model.bin")
    path.unlink()
    with pytest.raises(BadArtifact, match="does not load"):
        RUNTIME.open(model.components["torch"], Device("cpu"), Options())


def test_a_sessions_threads_are_its_own(vit_model: Any) -> None:
    before = torch.get_num_threads()
    session = RUNTIME.open(vit_model.components["torch"], Device("cpu"), Options(threads=before + 1))
    during: list[int] = []
    hook = session._module.register_forward_hook(lambda *_: during.append(torch.get_num_threads()))
    session.run({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})
    hook.remove()
    assert during == [before + 1]
    assert torch.get_num_threads() == before


def test_a_failure_inside_the_model_is_translated_and_leaves_the_threads(vit_model: Any) -> None:
    before = torch.get_num_threads()
    session = RUNTIME.open(vit_model.components["torch"], Device("cpu"), Options(threads=before + 1))
    session._module.module.classifier = torch.nn.Linear(3, 5)  # takes another width than comes in
    with pytest.raises(RuntimeFailure, match=r"PyTorch failed in model: .*Check the sizes") as caught:
        session.run({"pixel_values": np.zeros((1, 3, 8, 8), np.float32)})
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert torch.get_num_threads() == before


OPEN = """
import sys
from pathlib import Path
from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.errors import MissingDependency
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
sys.modules[sys.argv[1]] = None  # as if it were not installed
component = Component("model", "torch", "config.json", {}, {}, details={"kind": "unet"}, root=Path(sys.argv[2]))
try:
    load_runtime("torch").open(component, Device("cpu"), Options())
except MissingDependency as exc:
    print(exc.what, exc.fix)
"""


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_a_missing_model_library_is_told(python: Any, unet_model: Any, library: str) -> None:
    ran = python(OPEN, library, unet_model.source)
    assert library in ran.out, ran.err
    assert 'pip install "vitrify[torch]"' in ran.out


SPEAK = """
import logging
import sys
from pathlib import Path
from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
component = Component("it", "torch", "config.json", {}, {}, details={"kind": sys.argv[1]}, root=Path(sys.argv[2]))
load_runtime("torch").open(component, Device("cpu"), Options()).close()
print(*sorted(m for m in ("bitsandbytes", "torchao") if m in sys.modules))
logging.getLogger("torchao").warning("a word of its own")
"""


@pytest.mark.parametrize(("name", "kind"), [("vit_model", "image_classifier"), ("unet_model", "unet")])
def test_the_quantization_libraries_are_imported_in_silence(request: Any, python: Any, name: str, kind: str) -> None:
    """diffusers and transformers import them beside any model; they warn of kernels that nothing here uses."""
    pytest.importorskip("torchao", reason="needs vitrify[torch]")
    ran = python(SPEAK, kind, request.getfixturevalue(name).source)
    assert (ran.code, ran.err) == (0, "a word of its own\n")
    assert "torchao" in ran.out
