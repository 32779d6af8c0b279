"""What goes wrong on the command line is one clear error: paths in the wrong place, options that mean nothing here."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LONG = "a very long prompt " * 30


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", LONG, "emoji"],
        ["classify", LONG, "one.png"],
        ["classify", "EMOTIONS", LONG],
        ["inspect", LONG],
        ["export", LONG],
        ["inspect", "EMOTIONS", "--html", "nodir/x.html"],
        ["inspect", "EMOTIONS", "--html", "one.png/x.html"],
    ],
    ids=lambda a: "-".join(a)[:30],
)
def test_what_the_system_says_of_a_path_is_an_error_without_a_traceback(
    refuses: Callable[..., Any], emotions_artifact: Path, tmp_path: Path, arguments: list[str]
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    done = refuses([emotions_artifact if a == "EMOTIONS" else a for a in arguments])
    assert len(done.error["what"]) < 300, "a prompt is not repeated whole"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_read_is_an_error_without_a_traceback(
    here: Callable[..., Any], refused: Callable[..., dict[str, str]], emotions_artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o000)
    refused(here("classify", emotions_artifact, tmp_path / "locked/one.png", "--json"))


@pytest.mark.parametrize("arguments", [[], ["cache"]])
def test_the_program_alone_shows_its_help_and_no_error(vitrify: Callable[..., Any], arguments: list[str]) -> None:
    done = vitrify(*arguments)
    assert done.code == 2
    assert "Usage:" in done.out
    assert done.out.count("Usage:") == 1
    assert done.err == ""


@pytest.mark.parametrize("option", ["--revision", "--variant"])
def test_options_of_a_source_are_refused_for_an_artifact(
    refuses: Callable[..., Any], emotions_artifact: Path, diffusion_artifact: Path, tmp_path: Path, option: str
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    foreign = shutil.copytree(emotions_artifact, tmp_path / "foreign")
    (foreign / "artifact.json").unlink()
    for command in (
        ["classify", emotions_artifact, tmp_path / "one.png"],
        ["classify", foreign, tmp_path / "one.png"],
        ["generate", diffusion_artifact, "a fox", "-o", tmp_path / "fox.png"],
        ["verify", foreign, "--against", emotions_artifact],
    ):
        refuses([*command, option, "fp16"], 2, "usage", option)


def test_offline_reaches_the_hub(
    vitrify: Callable[..., Any], refused: Callable[..., dict[str, str]], emotions_artifact: Path, tmp_path: Path
) -> None:
    """With an empty cache and an address that leads nowhere: the network's error online, the cache's offline."""
    Image.new("RGB", (20, 20)).save(tmp_path / "one.png")
    away = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    manifest = json.loads((emotions_artifact / "artifact.json").read_text())
    manifest["model"]["source"] = "nobody/nothing"
    copy = shutil.copytree(emotions_artifact, tmp_path / "copy")
    (copy / "artifact.json").write_text(json.dumps(manifest))
    for command in (
        ["classify", "nobody/nothing", tmp_path / "one.png"],
        ["generate", "nobody/nothing", "a fox", "-o", tmp_path / "fox.png"],
        ["verify", copy, "--against", "nobody/nothing"],
    ):
        off = refused(vitrify(*command, "--offline", "--json", **away))
        on = refused(vitrify(*command, "--json", **away))
        assert "nobody/nothing" in off["what"]
        assert off["what"] != on["what"]


def test_a_prompt_without_end_gets_a_name_that_can_be_written(
    vitrify: Callable[..., Any], diffusion_artifact: Path, tmp_path: Path
) -> None:
    done = vitrify("generate", diffusion_artifact, "赤い狐" * 60, "--steps", 1, "--seed", 3, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    (path,) = tmp_path.iterdir()
    assert path.name == done.json["images"][0]["path"]
    assert path.name.endswith("-3.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_where_the_picture_goes_is_checked_before_it_is_drawn_also_without_a_name(
    here: Callable[..., Any], refused: Callable[..., dict[str, str]], diffusion_artifact: Path, tmp_path: Path
) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    done = here("generate", diffusion_artifact, "a fox", "--json", cwd=tmp_path / "locked")
    assert refused(done)["code"] == "disk"
    assert "device:" not in done.err, "the pipeline was opened for nothing"
