"""What is AOTInductor's own: native code that is checked before it is loaded, and weights that lie beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
pytest.importorskip("diffusers", reason="needs vitrify[export]")
if shutil.which("g++") is None:
    pytest.skip("needs a C++ compiler", allow_module_level=True)

from safetensors.torch import load_file  # noqa: E402

from vitrify.core.artifact import Component, WeightFile  # noqa: E402
from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import BadArtifact, DeviceError, UsageError  # noqa: E402
from vitrify.core.progress import Event  # noqa: E402
from vitrify.core.tensors import DType, TensorSpec  # noqa: E402
from vitrify.export.aotinductor import _fixed, _program, _reserved, _traced, write_package  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.quant.recipes import recipe  # noqa: E402
from vitrify.quant.support import check_target  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.low_rank import LowRank  # noqa: E402
from vitrify.runtimes.stored import stored_weights  # noqa: E402
from vitrify.runtimes.torch.aotinductor import RUNTIME, requirements  # noqa: E402


def made(model: Any, root: Path, told: list[str] | None = None) -> Component:
    component = model.components["onnx"]
    shutil.copy(model.source / "config.json", component.graph_path.parent)

    def report(event: Event) -> None:
        if told is not None and event.note:
            told.append(event.note)

    return write_package(component, root, report=report)


@pytest.fixture(scope="module")
def package(vit_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Component:
    """For reading only: it is shared."""
    return made(vit_model, tmp_path_factory.mktemp("package"))


@pytest.fixture
def copied(package: Component, tmp_path: Path) -> Component:
    shutil.copytree(package.root, tmp_path / "copy")
    return replace(package, root=tmp_path / "copy")


def opened(component: Component, overrides: Any = None, **options: Any) -> Any:
    return RUNTIME.open(component, Device("cpu"), Options(**options), overrides)


def test_the_package_holds_no_weights(vit_model: Any, package: Component) -> None:
    graph, *files = package.weights
    assert graph.path == package.graph == "model/model.pt2"
    assert graph.sha256
    (weights,) = [package.root / f.path for f in files if "constants" not in f.path]
    assert set(load_file(weights)) == set(vit_model.module.state_dict())
    assert package.requires == requirements()
    assert package.requires["runtime"] == f"torch=={torch.__version__.partition('+')[0]}"
    assert set(stored_weights(package)) == {
        n for n, p in vit_model.module.state_dict().items() if p.dim() > 1 and n.endswith(".weight")
    }


def test_another_checkpoint_shares_the_package(
    vit: Any, checkpoint: Callable[..., Any], vit_model: Any, package: Component, tmp_path: Path, same: Any
) -> None:
    told: list[str] = []
    other = checkpoint(vit, dtype="float16")
    component = made(other, tmp_path / "other", told)
    assert told == ["model: its package is in the cache"]
    assert component.graph_path.samefile(package.graph_path)
    tensors = sample_inputs(component, component.details["checks"][0], seed=0)
    expected = other.reference(tensors)
    same(opened(component).run(tensors), expected)
    with pytest.raises(AssertionError):  # the other's own weights: rounding them is seen
        same(vit_model.reference(tensors), expected)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("runtime", "torch==2.8.0", r"compiled for torch==2\.8\.0; here is torch=="),
        ("os", "Windows", r"compiled for Windows; here is"),
        ("machine", "riscv64", r"compiled for riscv64; here is"),
        ("instructions", ["avx2", "amx_tile_of_tomorrow"], r"compiled for a processor with amx_tile_of_tomorrow; here"),
    ],
)
def test_a_package_for_something_else_is_refused(package: Component, key: str, value: Any, said: str) -> None:
    with pytest.raises(DeviceError, match=said) as caught:
        opened(replace(package, requires={**package.requires, key: value}))
    assert "vitrify compile SOURCE --to aotinductor" in caught.value.fix


def test_another_package_is_never_loaded(copied: Component) -> None:
    data = bytearray(copied.graph_path.read_bytes())
    data[len(data) // 2] ^= 1
    copied.graph_path.unlink()  # it may be a link to the cache's
    copied.graph_path.write_bytes(data)
    with pytest.raises(BadArtifact, match=r"model\.pt2 is not the file that was built.*native code"):
        opened(copied)


def test_a_package_without_a_hash_is_never_loaded(package: Component) -> None:
    graph, *others = package.weights
    with pytest.raises(BadArtifact, match=r"holds no sha256 of model/model\.pt2"):
        opened(replace(package, weights=(WeightFile(graph.path, graph.bytes), *others)))


def test_a_weight_that_is_not_there_is_named(package: Component) -> None:
    with pytest.raises(BadArtifact, match=r"weights of model lack \S+"):
        opened(replace(package, weights=package.weights[:1]))


def test_a_branch_is_refused(package: Component) -> None:
    branch = LowRank(np.zeros((1, 16), np.float32), np.zeros((5, 1), np.float32))
    with pytest.raises(UsageError, match="AOTInductor adds nothing beside a layer"):
        opened(package, {"classifier.weight": branch})


@pytest.mark.parametrize("quant", ["int8-weights", "nf4-weights", "int8-static"])
def test_quantized_weights_are_refused_before_anything_starts(quant: str) -> None:
    with pytest.raises(UsageError, match=rf"{quant} does not run on aotinductor.*--to torch"):
        check_target(recipe(quant), "aotinductor")


ALONE = """
import json
import sys
from pathlib import Path
for name in ("diffusers", "transformers", "accelerate", "onnx", "onnx_ir"):
    sys.modules[name] = None  # as if it were not installed
import numpy as np
from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.core.registry import load_runtime
from vitrify.runtimes.base import Options
component = Component.from_json("model", json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
session = load_runtime("aotinductor").open(component, Device("cpu"), Options())
out = session.run({"pixel_values": np.full((3, 3, 8, 8), 0.5, np.float32)})["logits"]
print(json.dumps({"ran": str(session.placement), "logits": out.tolist()}))
"""


def test_it_opens_with_torch_alone(vit_model: Any, package: Component, python: Any, tmp_path: Path) -> None:
    import json

    (tmp_path / "component.json").write_text(json.dumps(package.to_json()))
    ran = python(ALONE, tmp_path / "component.json", package.root)
    assert ran.code == 0, ran.err
    assert ran.json["ran"] == "aotinductor inductor on cpu, float32"
    expected = vit_model.reference({"pixel_values": np.full((3, 3, 8, 8), 0.5, np.float32)})["logits"]
    np.testing.assert_allclose(ran.json["logits"], expected, rtol=0, atol=1e-4 * np.ptp(expected))


@pytest.mark.slow
def test_a_pipeline_of_packages_is_proved_like_any_other(diffusion_artifact: Path, tmp_path: Path) -> None:
    from vitrify.export.compile import compile_model
    from vitrify.pipelines.load import load

    artifact = compile_model(diffusion_artifact, tmp_path / "packages", to="aotinductor", verify=True)
    assert {c.format for c in artifact.components.values()} == {"aotinductor"}
    assert all(c.proof["numeric"]["snr_db"] > 100 for c in artifact.components.values())
    made = [load(path, device="cpu").generate("a red apple", steps=2, seed=1, width=96, height=128).images[0]
            for path in (artifact.root, diffusion_artifact)]  # fmt: skip
    off = np.abs(np.asarray(made[0], np.int16) - np.asarray(made[1], np.int16))
    assert off.max() <= 1


@pytest.mark.slow
def test_a_level_at_which_a_side_is_one_fixes_no_size() -> None:
    """As Stable Diffusion's UNet has one, of latents that are eight high."""
    config = {
        "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
        "layers_per_block": 1, "block_out_channels": [8, 8, 8, 8], "cross_attention_dim": 12, "attention_head_dim": 4,
        "down_block_types": ["CrossAttnDownBlock2D", *["DownBlock2D"] * 3],
        "up_block_types": [*["UpBlock2D"] * 3, "CrossAttnUpBlock2D"], "norm_num_groups": 4,
    }  # fmt: skip
    sizes = {"batch": 2, "height": 8, "width": 32, "tokens": 5}
    inputs = {
        "sample": TensorSpec(DType.FLOAT32, ("batch", 4, "height", "width")),
        "timestep": TensorSpec(DType.INT64, ()),
        "encoder_hidden_states": TensorSpec(DType.FLOAT32, ("batch", "tokens", 12)),
    }
    unet = Component("unet", "onnx", "unet/model.onnx", inputs, {}, details={"kind": "unet", "checks": [sizes]})
    module = _reserved("unet", config)
    assert _fixed(_program(module, unet, dict(sizes)), unet) == {"height"}
    assert not _fixed(_traced(module, unet), unet)
