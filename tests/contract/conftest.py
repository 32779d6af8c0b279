"""The adapters that the contract is held against: a new runtime is one more row."""

from __future__ import annotations

import copy
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ..few_bits import stands_for, wider

DOC = Path(__file__).resolve().parents[2] / "docs/adding-a-runtime.md"


@dataclass(frozen=True, eq=False)
class Row:
    """A runtime by its name in the registry, the format of the components that it opens, and how it opens them.

    quant: a recipe by which its weights are stored in few bits, and the library that computes with them.
    """

    runtime: str
    format: str
    library: str
    options: dict[str, Any] = field(default_factory=dict)
    quant: tuple[str, str] | None = None

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        return " ".join([self.runtime, self.format, *options, *(self.quant or ())])


ROWS = (
    Row("onnx", "onnx", "onnxruntime"),
    Row("onnx", "onnx", "onnxruntime", {"provider": "openvino"}),
    Row("openvino", "onnx", "openvino"),
    Row("openvino", "openvino", "openvino"),
    Row("torch", "torch", "torch"),
    Row("torch", "torch", "torch", {"compile": "regional"}),
    Row("torch", "torch", "torch", quant=("int8-weights", "torchao")),
    Row("torch", "torch", "torch", quant=("nf4-weights", "bitsandbytes")),
    Row("aotinductor", "aotinductor", "torch"),
    Row("ipex", "torch", "intel_extension_for_pytorch"),
    Row("onnx-reference", "onnx", "onnx"),  # the example in docs/adding-a-runtime.md
)


def skip_without(provider: str) -> None:
    """Skip where ONNX Runtime has no such provider for the CPU."""
    from vitrify.core.device import Device
    from vitrify.runtimes.ort_probe import lists

    if provider not in [row.name for row in lists(Device("cpu"))]:
        pytest.skip(f"needs ONNX Runtime's provider {provider}: make test-providers")


def skip_where_refused(case: Case) -> None:
    """Skip where a provider does not take all of the graph, which is an error by design."""
    from vitrify.core.errors import DeviceError

    try:
        case.open().close()
    except DeviceError as exc:
        pytest.skip(exc.what)


def openvino_ir(component: Any) -> Any:
    """The same graph and weights as an OpenVINO IR, in a folder beside the artifact's."""
    import openvino as ov

    from vitrify.core.artifact import WeightFile

    root, graph = component.root.with_name("ir"), f"{component.name}/openvino_model.xml"
    ov.save_model(ov.Core().read_model(component.graph_path), root / graph, compress_to_fp16=False)
    data = (root / graph).with_suffix(".bin")
    weights = (WeightFile(data.relative_to(root).as_posix(), data.stat().st_size),)
    return replace(component, format="openvino", graph=graph, root=root, weights=weights)


def package(component: Any, source: Path) -> Any:
    """The same module and weights as a package of AOTInductor, in a folder beside the artifact's."""
    from vitrify.export.aotinductor import write_package

    shutil.copy(source / "config.json", component.graph_path.parent)
    return write_package(component, component.root.with_name("package"))


# (model's id, check) -> the model, so that its id stays its own, and its outputs
_EXPECTED: dict[tuple[int, int], tuple[Any, dict[str, np.ndarray]]] = {}


@dataclass(frozen=True)
class Case:
    """A runtime and a model that it opens."""

    row: Row
    model: Any

    @property
    def runtime(self) -> Any:
        from vitrify.core.registry import load_runtime

        return load_runtime(self.row.runtime)

    @property
    def component(self) -> Any:
        components = self.model.components
        if self.row.format == "openvino" and "openvino" not in components:
            components["openvino"] = openvino_ir(components["onnx"])
        if self.row.format == "aotinductor" and "aotinductor" not in components:
            components["aotinductor"] = package(components["onnx"], self.model.source)
        return components[self.row.format]

    def open(
        self, component: Any = None, device: str = "cpu", overrides: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        from vitrify.core.device import Device
        from vitrify.runtimes.base import Options

        return self.runtime.open(
            component or self.component, Device.parse(device), Options(**self.row.options | options), overrides
        )

    def inputs(self, check: int = 0) -> dict[str, np.ndarray]:
        """Inputs at one of the two sets of sizes that the model's spec names."""
        from vitrify.proof.parity import sample_inputs

        return sample_inputs(self.component, self.component.details["checks"][check], seed=check)

    def expected(self, check: int = 0) -> dict[str, np.ndarray]:
        """What the library's own module makes of these inputs."""
        key = (id(self.model), check)
        if key not in _EXPECTED:
            _EXPECTED[key] = self.model, self.model.reference(self.inputs(check))
        return {name: value.copy() for name, value in _EXPECTED[key][1].items()}

    def copied(self, target: Path) -> Any:
        """The component in a folder of its own, with files of its own, to be damaged."""
        shutil.copytree(self.component.root, target)
        return replace(self.component, root=target)


def assert_same(given: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """Equal names, dtypes and shapes, and values within 1e-4 of the expected range."""
    assert list(given) == list(expected)
    for name, value in expected.items():
        assert given[name].dtype == value.dtype
        assert given[name].shape == value.shape
        spread = float(value.max() - value.min())
        assert spread > 0.01, "an output that is constant would prove nothing"
        np.testing.assert_allclose(given[name], value, rtol=0, atol=1e-4 * spread)


@pytest.fixture(scope="session")
def same() -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], None]:
    return assert_same


def blocks(language: str) -> list[str]:
    """The code blocks of the page, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOC.read_text("utf-8"), flags=re.M | re.S)


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's adapter as an installed package: its module, and the metadata that its pyproject.toml would make."""
    folder = tmp_path_factory.mktemp("site")
    toml = "\n".join(blocks("toml"))
    project = re.search(r'name = "([^"]+)"', toml)
    point = re.search(r'^\[project\.entry-points\."(vitrify\.runtimes)"\]\n([\w-]+) = "(\w+):(\w+)"$', toml, flags=re.M)
    assert project is not None
    assert point is not None
    (folder / f"{point[3]}.py").write_text(blocks("python")[0])
    info = folder / f"{project[1].replace('-', '_')}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project[1]}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{point[1]}]\n{point[2]} = {point[3]}:{point[4]}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
    sys.modules.pop(point[3], None)


def _param(row: Row) -> Any:
    """Those that compile for minutes run with make test-slow."""
    compiles = "compile" in row.options or row.runtime == "aotinductor"
    return pytest.param(row, marks=pytest.mark.slow) if compiles else row


@pytest.fixture(scope="module", params=[_param(row) for row in ROWS], ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    found: Row = request.param
    pytest.importorskip(found.library, reason=f"the {found.runtime} runtime needs it")
    if found.quant:
        pytest.importorskip(found.quant[1], reason=f"{found.quant[0]} on {found.runtime} needs it")
    if found.runtime == "onnx-reference":
        request.getfixturevalue("example")
    if "provider" in found.options:
        skip_without(found.options["provider"])
    return found


def in_few_bits(model: Any, quant: str) -> Any:
    """The model with its weights stored by a recipe, and the library's module with what they stand for."""
    import torch

    from vitrify.export.torch_target import write_torch
    from vitrify.quant.recipes import recipe

    onnx = model.components["onnx"]
    shutil.copy(model.source / "config.json", onnx.graph_path.parent)
    made = write_torch(onnx, onnx.root.with_name(quant), recipe=recipe(quant))
    module = copy.deepcopy(model.module)
    stored = {name: torch.from_numpy(value.copy()) for name, value in stands_for(model, made).items()}
    plain = module.state_dict()
    assert sum(bool((plain[name] != value).any()) for name, value in stored.items()) >= 4, "it stores next to nothing"
    module.load_state_dict(stored, strict=False)
    return replace(model, module=module, components={"torch": made})


@pytest.fixture(scope="session")
def wide(vit: Any, unet: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Both architectures, with layers that are worth quantizing."""
    return {one.name: wider(one, tmp_path_factory.mktemp(one.name)) for one in (vit, unet)}


@pytest.fixture(scope="module")
def case(row: Row, request: pytest.FixtureRequest) -> Case:
    """A classifier: one input, one output."""
    return request.getfixturevalue("make_case")() if row.quant else Case(row, request.getfixturevalue("vit_model"))


@pytest.fixture(scope="module")
def unet_case(row: Row, request: pytest.FixtureRequest) -> Case:
    """A UNet: three inputs, one of them without dims, and four symbols."""
    if row.quant:
        made, wide = request.getfixturevalue("checkpoint"), request.getfixturevalue("wide")
        return Case(row, in_few_bits(made(wide["unet"]), row.quant[0]))
    case = Case(row, request.getfixturevalue("unet_model"))
    if "provider" in row.options:
        skip_where_refused(case)
    return case


@pytest.fixture(scope="module")
def unet_session(unet_case: Case) -> Any:
    """An open session that tests share: none may close it."""
    return unet_case.open()


@pytest.fixture(scope="module")
def make_case(
    row: Row, vit: Any, checkpoint: Callable[..., Any], request: pytest.FixtureRequest
) -> Callable[..., Case]:
    """A classifier with a checkpoint of its own."""
    if row.quant:
        wide, quant = request.getfixturevalue("wide"), row.quant[0]
        return lambda **how: Case(row, in_few_bits(checkpoint(wide["vit"], **how), quant))
    return lambda **how: Case(row, checkpoint(vit, **how))
