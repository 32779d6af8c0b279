"""The tools' tables, pins, environments and results; what a case says that cannot run."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vitrify.bench import bench_less, bench_peers, records
from vitrify.bench.measure import CaseFailed, measure
from vitrify.bench.peers import environments, formats, results, table
from vitrify.bench.peers.source import EULER, make
from vitrify.core.errors import BadInput
from vitrify.core.registry import RUNTIMES
from vitrify.pipelines.saving import Saving

pytest.importorskip("psutil", reason="needs vitrify[bench]")

PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*")


def test_every_row_has_a_file_an_environment_and_a_format_of_it() -> None:
    rows = {row.name: row for row in (*table.FLOAT32, *table.QUANTIZED, *table.BFLOAT16)}.values()
    assert len({row.name for row in rows}) == len({bench_peers.slug(row.name) for row in rows}) == len(rows)
    for row in rows:
        assert (table.HERE / f"{row.tool}.py").is_file()
        assert row.environment is None or table.ENVIRONMENTS[row.environment.name] is row.environment
        assert row.format is None or row.format.environment is row.environment
    assert {one.environment.name for one in rows if one.environment} == set(table.ENVIRONMENTS)
    assert {one.format.name for one in rows if one.format} == set(table.FORMATS)
    assert [one.of for one in table.FORMATS.values() if one.of] == ["vitrify-fp32"]


def test_bfloat16_has_rows_where_the_processor_has_it() -> None:
    assert set(table.FLOAT32) | set(table.QUANTIZED) <= set(table.peers())
    assert (table.BFLOAT16[0] in table.peers()) == table.has_bfloat16()


def test_the_rows_that_compute_less_are_what_generate_takes(tmp_path: Path) -> None:
    named = [case.name for case in bench_less.LESS.cases(tmp_path)]
    assert len(set(named)) == len(named) == len({bench_peers.slug(name) for name in named})
    compared = {name for one in bench_less.LESS.comparisons for name in (one.baseline, *one.cases) if name}
    assert compared <= set(named)
    ours = [row for row in (*bench_less.IN_FLOAT32, *bench_less.IN_8_BITS) if row.tool == "ours"]
    for row in ours:
        runtime, *words = row.variant.split()
        assert runtime in RUNTIMES
        Saving.of(**dict(word.split("=") for word in words))  # raises for what there is not
    assert {row.format for row in ours} <= set(table.FORMATS.values())


def test_each_row_of_less_stands_in_one_table(tmp_path: Path) -> None:
    rows = [row.name for row in (*bench_less.IN_FLOAT32, *bench_less.IN_8_BITS)]
    assert sorted(rows) == sorted(case.name for case in bench_less.LESS.cases(tmp_path))


@pytest.mark.parametrize("environment", table.ENVIRONMENTS.values(), ids=list(table.ENVIRONMENTS))
def test_every_pin_is_exact(environment: table.Environment) -> None:
    lines = environment.requirements.read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if not PIN.fullmatch(pin)] == []
    names = [re.sub(r"[-_.]+", "-", pin.partition("==")[0]).lower() for pin in pins]
    assert len(set(names)) == len(names)
    assert set(environment.without) <= set(names)


def test_a_case_without_its_environment_says_how_to_build_it(tmp_path: Path) -> None:
    cases = {case.name: case for case in bench_peers.PEERS.cases(tmp_path)}
    with pytest.raises(CaseFailed) as caught:
        measure([cases["diffusers, eager"], cases["Optimum ONNX"]], rounds=1, warmup=0)
    assert "Case 'diffusers, eager' failed: The environment diffusers is not there." in caught.value.what
    assert "The environment optimum-onnx is not there." in caught.value.what
    assert f"python -m vitrify.bench.peers.environments --work {tmp_path} --only diffusers" in caught.value.fix
    assert caught.value.samples == []


def test_vitrifys_own_case_names_what_was_not_made(tmp_path: Path) -> None:
    case = next(c for c in bench_peers.PEERS.cases(tmp_path) if c.name == "vitrify on ONNX Runtime")
    assert case.before is not None
    with pytest.raises(BadInput, match=r"formats/vitrify-fp32 was not made"):
        case.before()


@pytest.mark.slow
def test_an_environment_that_cannot_be_built_is_told_by_its_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A real venv, and pip on a pin that no index is asked for."""
    pinned = tmp_path / "broken.txt"
    pinned.write_text("/there/is/no/such.whl\n")
    broken = table.Environment("broken", ("json",))
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setitem(table.ENVIRONMENTS, "broken", broken)
    assert environments.main(["--work", str(tmp_path / "work"), "--only", "broken"]) == 0
    assert "installing what broken needs failed" in capsys.readouterr().err
    with pytest.raises(BadInput, match=r"(?s)installing what broken needs failed.*such\.whl") as caught:
        broken.required(tmp_path / "work")
    assert "pip install -r" in caught.value.fix
    with pytest.raises(BadInput, match="installing what broken needs failed"):
        formats.make(table.Format("x", broken, ("-c", "pass"), of=""), tmp_path / "work")


@pytest.mark.slow
def test_an_environment_is_built_once_and_anew_for_other_pins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare.txt").write_text("# nothing\n")
    monkeypatch.setattr(table, "HERE", tmp_path)
    bare, work = table.Environment("bare", ("json",)), tmp_path / "work"
    environments.build(bare, work)
    bare.required(work)
    built = bare.python(work).lstat().st_mtime_ns
    environments.build(bare, work)
    assert bare.python(work).lstat().st_mtime_ns == built
    (tmp_path / "bare.txt").write_text("# other\n")
    with pytest.raises(BadInput, match="built from other pins"):
        bare.required(work)
    (tmp_path / "bare.txt").write_text("# nothing\n")
    (tmp_path / "lacking.txt").write_text("# nothing\n")
    with pytest.raises(BadInput, match=r"importing it in lacking failed"):
        environments.build(table.Environment("lacking", ("no_such_module",)), work)

    made = table.Format("made", bare, ("-c", "open(__import__('sys').argv[1], 'w')", "{target}"))
    idle = table.Format("idle", bare, ("-c", "pass"))
    formats.make(made, work)
    assert formats.figures(made, work).keys() == {"prepare_s", "prepare_mb"}
    with pytest.raises(BadInput, match="ended well and wrote nothing"):
        formats.make(idle, work)
    log = (work / "peers" / "formats.jsonl").read_text()
    formats.make(made, work)
    assert (work / "peers" / "formats.jsonl").read_text() == log


def test_a_picture_is_compared_with_the_reference(tmp_path: Path) -> None:
    from PIL import Image

    ours, reference = tmp_path / "ours.png", tmp_path / "reference.png"
    Image.linear_gradient("L").convert("RGB").save(reference)
    with pytest.raises(BadInput, match="is no picture"):
        bench_peers._compared(ours, reference)
    Image.linear_gradient("L").convert("RGB").save(ours)
    assert bench_peers._compared(ours, reference) == {"psnr_db": table.IDENTICAL_DB}
    changed = Image.open(ours).convert("RGB")
    changed.putpixel((9, 9), tuple(v + 1 for v in changed.getpixel((9, 9))))  # type: ignore[union-attr]
    changed.save(ours)
    assert 90 < bench_peers._compared(ours, reference)["psnr_db"] < table.IDENTICAL_DB
    changed.resize((64, 64)).save(ours)
    with pytest.raises(BadInput, match=r"is \(64, 64, 3\), the reference \(256, 256, 3\)"):
        bench_peers._compared(ours, reference)


@pytest.mark.slow
def test_the_common_model_is_laid_out_as_a_hub_has_it(diffusion_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra export")
    import diffusers
    import torch

    target = tmp_path / "model"
    make(diffusion_source, target)
    unet = Path("unet/diffusion_pytorch_model.safetensors")
    assert (target / unet).samefile(diffusion_source / unet)
    assert (target / "tokenizer/merges.txt").read_text().startswith("#version: 0.2\n")
    assert json.loads((target / "tokenizer/vocab.json").read_text())
    pipelines = [
        diffusers.StableDiffusionPipeline.from_pretrained(str(folder), local_files_only=True)
        for folder in (diffusion_source, target)
    ]
    assert type(pipelines[1].scheduler).__name__ == EULER["_class_name"]
    pipelines[1].scheduler.set_timesteps(4)
    assert pipelines[1].scheduler.timesteps.tolist() == [999, 666, 333, 0]
    states = [pipeline.text_encoder.state_dict() for pipeline in pipelines]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def sample(case: str, number: int, started: float, **values: float) -> dict[str, Any]:
    return records.Sample(case, "", number, 0, 0, started, 9.0, 1.0, 1.0, 2_000_000_000, values=values).to_json()


def test_results_show_the_last_run_and_what_failed_in_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machine = {"cpu": "a CPU", "usable_cores": 2}
    names = ["diffusers, eager", "vitrify on ONNX Runtime", "Optimum ONNX", "stable-diffusion.cpp, q8_0"]
    plan = {"rounds": 2, "cases": [{"name": name} for name in names]}
    with records.Writer(tmp_path / "peers.jsonl") as writer:
        for started, eager in ((100.0, 99.0), (200.0, 20.0)):
            writer.line("header", {"schema": records.SCHEMA, "started": started, "machine": machine, "plan": plan})
            for number in (1, 2):
                for case, seconds, db in ((names[0], eager, 120.0), (names[1], 10.0, 80.0), (names[3], 8.0, 30.0)):
                    values = {"image_s": seconds * (1 + number / 10), "psnr_db": db, "disk_mb": 4000.0}
                    writer.line("sample", sample(case, number, started + 1, **values))
            writer.line("failure", {"case": names[2], "what": f"broken\nin {started:.0f}"})
    assert results.main(["--work", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    lines = [line for line in shown.splitlines() if line.startswith("|") and "---" not in line]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == ["tool", names[1], names[0], "tool", names[3]]
    assert "| vitrify on ONNX Runtime | 11.5 | - |" in lines[1]
    assert lines[1].endswith("| 2000 | 4000 | 80.0 | - | - | 0.50 |")
    assert "identical" in lines[2]
    assert lines[2].endswith("| 1.00 |")
    assert lines[4].endswith("| 0.40 |")
    assert "- Optimum ONNX: broken in 200" in shown
    assert "a CPU, 2 cores, 2 rounds." in shown


def test_results_of_no_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert results.main(["--work", str(tmp_path)]) == BadInput("", "").exit_code
    assert "peers.jsonl cannot be read" in capsys.readouterr().err
