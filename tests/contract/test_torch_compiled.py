"""torch.compile: what is compiled, where it is kept, and what is said where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs vitrify[torch]")
pytest.importorskip("diffusers", reason="needs vitrify[torch]")

from vitrify.core.device import Device  # noqa: E402
from vitrify.core.errors import MissingDependency, UsageError  # noqa: E402
from vitrify.proof.parity import sample_inputs  # noqa: E402
from vitrify.runtimes.base import Options  # noqa: E402
from vitrify.runtimes.low_rank import LowRank  # noqa: E402
from vitrify.runtimes.torch import RUNTIME  # noqa: E402
from vitrify.runtimes.torch.compiled import repeated_blocks  # noqa: E402

OPEN = """
import json
import sys
from pathlib import Path
from vitrify.core.artifact import Component
from vitrify.core.device import Device
from vitrify.runtimes.base import Options
from vitrify.runtimes.torch import RUNTIME
data = json.loads(Path(sys.argv[1]).read_text())
component = Component.from_json("unet", data, Path(sys.argv[2]))
session = RUNTIME.open(component, Device("cpu"), Options(compile="regional"))
print(json.dumps(session.details | {"ran": str(session.placement)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_second_process_finds_what_the_first_compiled(python: Any, unet_model: Any, tmp_path: Path) -> None:
    component = unet_model.components["torch"]
    (tmp_path / "component.json").write_text(json.dumps(component.to_json()))
    given = (OPEN, tmp_path / "component.json", component.root)
    first, second = (python(*given, VITRIFY_CACHE=str(tmp_path / "cache")) for _ in range(2))
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.json["ran"] == "torch inductor on cpu, float32"
    assert first.json["compiled"] == "4 BasicTransformerBlock"
    assert (first.json["cache"], second.json["cache"]) == ("miss", "hit")
    assert first.json["graphs"] == second.json["graphs"] > 0
    assert second.json["compile_s"] < first.json["compile_s"]
    kept = list((tmp_path / "cache").glob("inductor/*/.used"))
    assert len(kept) == 1
    assert not list((tmp_path / "cache").glob("inductor/.work*")), "the folder of a compilation is gone with it"
    assert list(kept[0].parent.rglob("*.so"))


def test_a_classifiers_blocks_are_compiled_and_compute_the_same(vit_model: Any, same: Any) -> None:
    """The whole contract is held by make test-slow; this is what every run can afford of it."""
    component = vit_model.components["torch"]
    session = RUNTIME.open(component, Device("cpu"), Options(threads=1, compile="regional"))
    assert session.placement.provider == "inductor"
    assert session.details["graphs"] >= 1
    for check in (0, 1):
        tensors = sample_inputs(component, component.details["checks"][check], seed=check)
        same(session.run(tensors), vit_model.reference(tensors))


def test_there_is_no_other_way_to_compile(unet_model: Any) -> None:
    with pytest.raises(UsageError, match=r"compile is 'max'.*compile=regional or compile=whole"):
        RUNTIME.open(unet_model.components["torch"], Device("cpu"), Options(compile="max"))


def test_without_a_compiler_the_fix_is_told(vit_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import config

    monkeypatch.setenv("VITRIFY_CACHE", str(tmp_path / "cache"))
    torch._dynamo.reset()  # what this process has compiled needs no compiler
    said = r"C\+\+ compiler, and finds none.*apt install g\+\+"
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}), pytest.raises(MissingDependency, match=said):
        RUNTIME.open(vit_model.components["torch"], Device("cpu"), Options(compile="whole"))
    assert not (tmp_path / "cache/inductor").exists() or not list((tmp_path / "cache/inductor").iterdir())


def test_blocks_that_repeat_are_found() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextModel(
        CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=20)
    )
    assert [type(b).__name__ for b in repeated_blocks(clip)] == ["CLIPEncoderLayer"] * 3
    # the first block of a T5 has a table of its own, and of the others none
    t5 = T5EncoderModel(T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2, vocab_size=20))
    assert [type(b).__name__ for b in repeated_blocks(t5)].count("T5Block") == 2
    assert list(repeated_blocks(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)))) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regional", "whole"])
def test_a_branch_beside_a_layer_is_compiled_with_it(unet_model: Any, same: Any, mode: str) -> None:
    component = unet_model.components["torch"]
    rng = np.random.default_rng(0)
    # two of the four blocks, which are of one kind
    names = [
        f"{block}.transformer_blocks.0.attn1.to_q.weight"
        for block in ("mid_block.attentions.0", "up_blocks.0.attentions.1")
    ]
    branches = {n: LowRank(*(rng.standard_normal(s).astype(np.float32) for s in ((2, 8), (8, 2)))) for n in names}
    plain = RUNTIME.open(component, Device("cpu"), Options(compile=mode))
    sessions = [RUNTIME.open(component, Device("cpu"), Options(compile=c), branches) for c in (None, mode)]
    for check in (0, 1):
        tensors = sample_inputs(component, component.details["checks"][check], seed=check)
        expected = sessions[0].run(tensors)
        same(sessions[1].run(tensors), expected)
        same(plain.run(tensors), unet_model.reference(tensors))
        assert np.abs(expected["out_sample"] - unet_model.reference(tensors)["out_sample"]).max() > 1e-3
