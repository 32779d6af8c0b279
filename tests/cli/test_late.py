"""Commands are imported when they are asked for, and the command line knows all of them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from vitrify.cli import COMMANDS

# what none of the two commands has a use for where an artifact is named: each costs some 5 to 100 ms to import
LIGHT = (
    *("vitrify.cli_bench", "vitrify.cli_compile", "vitrify.cli_sweep", "vitrify.export.job", "vitrify.export.resolve"),
    *("vitrify.pipelines.foreign", "vitrify.pipelines.families.flux", "vitrify.quant.support"),
    *("rich", "filelock", "platformdirs", "torch", "onnx", "pydantic"),
)
RUN = (
    "import sys\nfrom vitrify.cli import main\nsys.argv[0] = 'vitrify'\n"
    "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
    "print('LOADED', *sys.modules)"
)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_where_the_table_says(name: str) -> None:
    module, _, attribute = COMMANDS[name].partition(":")
    assert callable(getattr(import_module(f"vitrify.{module}"), attribute))


def test_help_lists_them_in_the_tables_order(vitrify: Callable[..., Any]) -> None:
    lines = vitrify("--help").out.partition("Commands")[2].splitlines()
    shown = [words[1] for line in lines if len(words := line.split()) > 2 and words[1] in COMMANDS and line[2] != " "]
    assert shown == list(COMMANDS)


@pytest.mark.parametrize(("given", "meant"), [("generat", "generate"), ("serve-kye", "serve-key"), ("cach", "cache")])
def test_a_wrong_name_is_answered_with_the_nearest(vitrify: Callable[..., Any], given: str, meant: str) -> None:
    done = vitrify(given)
    assert done.code == 2
    assert f"No such command '{given}'" in done.err
    assert f"'{meant}'" in done.err


def test_commands_below_a_command_have_no_options_of_completion(vitrify: Callable[..., Any]) -> None:
    done = vitrify("bench", "--help")
    assert done.code == 0
    assert "compare" in done.out
    assert "completion" not in done.out


def test_a_picture_waits_for_nothing_that_it_has_no_use_for(
    python: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    done = python(RUN, "generate", diffusion_artifact, "a red apple", "--steps", 1, "-o", tmp_path / "apple.png")
    assert done.code == 0, done.err
    assert (tmp_path / "apple.png").is_file()
    assert set(LIGHT) & set(done.out.partition("LOADED")[2].split()) == set()


def test_nor_does_a_label(
    python: Callable[..., Any], diffusion_artifact: Path, emotions_artifact: Path, tmp_path: Path
) -> None:
    from PIL import Image

    Image.new("RGB", (48, 48), "red").save(tmp_path / "red.png")
    done = python(RUN, "classify", emotions_artifact, tmp_path / "red.png")
    assert done.code == 0, done.err
    more = ("vitrify.pipelines.diffusion", "vitrify.pipelines.schedulers", "tokenizers", "importlib.metadata")
    assert {*LIGHT, *more} & set(done.out.partition("LOADED")[2].split()) == set()
