"""Every name of TensorRT that the adapter and the exporter use: in TensorRT-RTX by import, in TensorRT by a list.

TensorRT itself does not install where only PyPI is reached, but the wheel of its bindings downloads. The slow test here
imports that wheel over empty libraries and reads its classes, which is where tests/fixtures/tensorrt-names.txt is from.
So the names of TensorRT are known; what its calls do is not.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="needs vitrify[tensorrt-rtx]")

from vitrify.export import plan_options  # noqa: E402
from vitrify.export.plan_options import PlanOptions  # noqa: E402
from vitrify.runtimes import cuda  # noqa: E402
from vitrify.runtimes.trt_weights import MEMBERS  # noqa: E402

ROOT = Path(cuda.__file__).resolve().parents[1]
NAMES = Path(__file__).resolve().parents[1] / "fixtures/tensorrt-names.txt"
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("runtimes/trt*.py", "export/plan*.py")
    for path in ROOT.glob(pattern)
)
# a variable of those files -> the library's class that it holds
OBJECTS = {
    "runtime": "Runtime",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "tensor": "ITensor",
    "layer": "IConstantLayer",
    "refitter": "Refitter",
    "prototype": "Weights",
    "cache": "ITimingCache",
}
# where a file holds something else under that name; "": something of ours
OTHERS = {
    ("export/plan.py", "runtime"): "",
    ("runtimes/trt_session.py", "tensor"): "",
    ("runtimes/trt_engine.py", "config"): "IRuntimeConfig",
    ("runtimes/trt_kernels.py", "config"): "IRuntimeConfig",
    ("runtimes/trt_kernels.py", "cache"): "IRuntimeCache",
}
# TensorRT lacks these; the code asks before it uses them, or is for TensorRT-RTX alone
RTX_ALONE = {
    *("Runtime.engine_header_size", "Runtime.get_engine_validity"),
    *("EngineInvalidityDiagnostics", "EngineInvalidityDiagnostics.__members__"),
    *("IRuntimeConfig.create_runtime_cache", "IRuntimeConfig.set_runtime_cache", "IRuntimeConfig.cuda_graph_strategy"),
    *("IRuntimeCache.serialize", "IRuntimeCache.deserialize"),
    *("CudaGraphStrategy", "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE"),
    *("ComputeCapability", "ComputeCapability.__members__"),
    *("IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"),
}


def used(file: str) -> Iterator[str]:
    """`Class.member` or `Class` of each name of the library that a file reads, calls or sets."""
    for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or not names:
            continue
        owner = node.id
        while owner in ("self", "opened", "work") and names:  # work.context.set_input_shape
            owner = names.pop(0).lstrip("_")
        if owner == "trt" and names:
            yield from (".".join(names[: n + 1]) for n in range(min(len(names), 2)))
        elif owner in OBJECTS and names and OTHERS.get((file, owner), OBJECTS[owner]):
            yield f"{OTHERS.get((file, owner), OBJECTS[owner])}.{names[0]}"


def chosen() -> Iterator[str]:
    """The members that are named by a text, through getattr."""
    every = PlanOptions(strip=True, refit=True, weight_streaming=True)
    yield from (f"BuilderFlag.{flag}" for flag in every.flags())
    yield from (f"HardwareCompatibilityLevel.{level}" for level in plan_options.COMPATIBILITY.values())
    yield from (f"DataType.{member}" for member in MEMBERS.values())


def everything() -> set[str]:
    found = {name for file in FILES for name in used(file)} | set(chosen())
    return {name for name in found if not name.endswith(("__init__", "__class__"))}


def has(library: Any, name: str) -> bool:
    found = library
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def test_every_name_exists_in_tensorrt_rtx() -> None:
    names = everything()
    assert len(names) > 90
    assert [name for name in sorted(names) if not has(trt, name)] == []


def test_the_walk_finds_what_is_wrong() -> None:
    assert not has(trt, "ICudaEngine.weight_streaming_budget_v3")
    assert "IExecutionContext.execute_async_v3" in everything()
    assert "IRuntimeConfig.set_runtime_cache" in everything()
    assert "Refitter.get_missing_weights" in everything()


def listed() -> tuple[str, set[str]]:
    """(version of the wheel, names) of the list."""
    first, *names = NAMES.read_text("utf-8").split("\n")
    return first.removeprefix("# tensorrt-cu12-bindings "), {name for name in names if name and name[0] != "#"}


def test_every_name_that_both_libraries_need_is_listed_for_tensorrt() -> None:
    """The list holds exactly what is used: a name that goes takes its line with it."""
    names = {name for name in everything() if not name.endswith("__version__")}
    assert names - RTX_ALONE == listed()[1]
    assert names >= RTX_ALONE


STUBS = """
void *createInferBuilder_INTERNAL(void){return 0;}
void *createInferRefitter_INTERNAL(void){return 0;}
void *createInferRuntime_INTERNAL(void){return 0;}
void *createNvOnnxParserRefitter_INTERNAL(void){return 0;}
void *createNvOnnxParser_INTERNAL(void){return 0;}
void *getBuilderPluginRegistry(void){return 0;}
void *getPluginRegistry(void){return 0;}
int getNvOnnxParserVersion(void){return 0;}
int initLibNvInferPlugins(void){return 0;}
"""
READ = """
import sys
import tensorrt_bindings as trt
def has(name):
    found = trt
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True
names = sys.stdin.read().split()
print(trt.__version__)
print(*(name for name in names if has(name)), sep="\\n")
"""


@pytest.mark.slow
def test_the_list_is_what_the_bindings_of_tensorrt_have(tmp_path: Path) -> None:
    """The wheel's own extension module, over libraries that hold nothing but the symbols that it asks for to load."""
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    version, names = listed()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(tmp_path)]
    got = subprocess.run(
        [*pip, f"tensorrt-cu12-bindings=={version}"], capture_output=True, text=True, timeout=300, check=False
    )
    wheels = list(tmp_path.glob("*.whl"))
    if not wheels:
        pytest.skip(f"pip does not reach the wheel: {got.stderr.strip()[-200:]}")
    shutil.unpack_archive(wheels[0], tmp_path / "wheel", "zip")
    (tmp_path / "stubs.c").write_text(STUBS)
    module = next((tmp_path / "wheel/tensorrt_bindings").glob("tensorrt*.so"))
    wanted = set(re.findall(rb"lib(?:nvinfer|nvinfer_plugin|nvonnxparser)\.so\.\d+", module.read_bytes()))
    for name in (library.decode() for library in wanted):
        made = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(tmp_path / name), str(tmp_path / "stubs.c")]
        subprocess.run(made, check=True, timeout=60)
    # in a process of its own: two modules of one library do not live in one
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(tmp_path / "wheel")}
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ)],
        input=" ".join(sorted(names | RTX_ALONE)), env=environment, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found, *has_them = ran.stdout.split()
    assert found == version
    assert set(has_them) == names
