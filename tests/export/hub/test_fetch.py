"""Fetching: what is asked for, in which variant and revision, what the cache and the environment change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vitrify.core.errors import BadInput
from vitrify.core.progress import Event
from vitrify.core.safetensors_header import open_checkpoint
from vitrify.export.hub import is_hub_id

FACES = "dima806/facial_emotions_image_detection"
COMMIT = "1" * 40


def test_only_what_a_classifier_needs(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    events: list[Event] = []
    fetched = hub.get(FACES, tmp_path, report=events.append)
    needed = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert hub.files("GET") == hub.files("HEAD") == needed
    assert {path.name for path in fetched.folder.iterdir()} == needed
    assert fetched.revision == COMMIT == fetched.folder.name
    assert (fetched.folder / "model.safetensors").read_bytes() == hub.repos[FACES]["model.safetensors"]
    assert open_checkpoint(fetched.folder)
    assert "model.safetensors" in events[-2].note
    assert events[-1].done == events[-1].total


def test_the_cache_serves_offline_and_again(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    first = hub.get(FACES, tmp_path)
    hub.asked.clear()
    assert hub.get(FACES, tmp_path, offline=True) == first
    assert not hub.asked
    assert hub.get(FACES, tmp_path) == first
    assert not hub.files("GET")
    assert hub.get(FACES, tmp_path, revision=COMMIT, offline=True) == first


def test_a_pipeline_without_what_is_not_run(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/sd"] = hub.pipeline()
    folder = hub.get("a/sd", tmp_path).folder
    # By HEAD: files of the same content are downloaded once.
    shards = {f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert hub.files("HEAD") == shards | {
        "model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        "tokenizer/tokenizer_config.json", "text_encoder/config.json", "text_encoder/model.safetensors",
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert set(open_checkpoint(folder / "unet")) == {"a", "b"}
    assert hub.asked[-1][1].endswith(".safetensors")  # weights last: offline relies on it


def test_a_variant_and_no_other(hub: Any, tmp_path: Path) -> None:
    hub.repos["a/sd"] = hub.pipeline()
    folder = hub.get("a/sd", tmp_path, variant="fp16").folder
    assert all(".fp16" in name for name in hub.files() if name.endswith(".safetensors"))
    assert set(open_checkpoint(folder / "unet", variant="fp16")) == {"a", "b"}
    with pytest.raises(BadInput, match=r"a/sd, \w+, has no variant 'bf16'; it has: plain, fp16\."):
        hub.get("a/sd", tmp_path, variant="bf16")
    hub.repos["a/half"] = hub.pipeline(variants=(".fp16",))
    with pytest.raises(BadInput, match=r"has no plain safetensors; it has: fp16.*--variant fp16"):
        hub.get("a/half", tmp_path)
    assert not any("a/half" in path and path.endswith(".safetensors") for _, path in hub.asked)


def test_a_revision(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    assert hub.get(FACES, tmp_path, revision="v2").revision == "2" * 40
    assert hub.get(FACES, tmp_path, revision="v2", offline=True).revision == "2" * 40
    with pytest.raises(BadInput, match=r"at revision main is not in the cache"):
        hub.get(FACES, tmp_path, revision="main", offline=True)
    with pytest.raises(BadInput, match=r"has no revision 'v9'.*branch, tag or commit"):
        hub.get(FACES, tmp_path, revision="v9")


def child(hub: Any, home: Path, **env: str) -> subprocess.Popen[str]:
    code = f"from vitrify.export.hub import fetch; print(fetch({FACES!r}).folder)"
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(home),
            "PYTHONPATH": os.pathsep.join(sys.path),
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_environment_is_respected(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = hub.faces()
    online = child(hub, tmp_path).communicate(timeout=120)[0]
    assert Path(online.strip()).is_relative_to(tmp_path / "hub")
    hub.asked.clear()
    assert child(hub, tmp_path, HF_HUB_OFFLINE="1").communicate(timeout=120)[0] == online
    assert not hub.asked
    empty = child(hub, tmp_path / "empty", HF_HUB_OFFLINE="1").communicate(timeout=120)[1]
    assert "is not in the cache" in empty


def test_ctrl_c_leaves_no_half_file_and_goes_on(hub: Any, tmp_path: Path) -> None:
    hub.repos[FACES] = {**hub.faces(), "model.safetensors": hub.weights(2_000_000)}
    hub.slow = True
    running = child(hub, tmp_path)
    deadline = time.monotonic() + 60
    while "model.safetensors" not in hub.files() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) != 0
    assert "KeyboardInterrupt" in running.communicate()[1]
    assert not list(tmp_path.rglob("snapshots/*/model.safetensors"))
    hub.slow = False
    folder = Path(child(hub, tmp_path).communicate(timeout=120)[0].strip())
    assert (folder / "model.safetensors").read_bytes() == hub.repos[FACES]["model.safetensors"]


def test_what_is_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    for text in (FACES, "gpt2", "stable-diffusion-v1-5/stable-diffusion-v1-5", "a/_b.c"):
        assert is_hub_id(text), text
    for text in (
        "here", "here/model", "./a/b", "/a/b", "~/a", "a/b/c", "a//b", "", "a b", "a/../b", "a/b--c",
        "model.safetensors", "x/model.ckpt", "https://huggingface.co/a/b", "a\\b", "x" * 97,
    ):  # fmt: skip
        assert not is_hub_id(text), text
