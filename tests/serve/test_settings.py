"""Settings and keys: where they come from, and what is refused."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
from vitrify.core.errors import BadInput, UsageError
from vitrify.serve.errors import Unauthorized
from vitrify.serve.keys import Keys, add_key
from vitrify.serve.run import models_for, worker_settings
from vitrify.serve.settings import Settings


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('queue = 5\nbatch = 6\nrate = 7.5\ndevice = ["cpu", "cuda:0"]\n')
    monkeypatch.setenv("VITRIFY_SERVE_BATCH", "60")
    monkeypatch.setenv("VITRIFY_SERVE_RATE", "70")
    made = Settings.read(file, rate=700.0, timeout=None)
    assert (made.queue, made.batch, made.rate, made.device, made.timeout) == (5, 60, 700.0, ["cpu", "cuda:0"], 600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("queue = 0", "queue"),
        ("queue = 'many'", "queue"),
        ("quue = 5", "quue"),
        ("queue 5", "no TOML"),
        ("port = 70000", "port"),
    ],
)
def test_settings_that_make_no_sense(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=said):
        Settings.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file"):
        Settings.read(tmp_path / "none.toml")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_a_public_address_needs_keys_or_a_word(host: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there are no keys"):
        Settings.read(host=host)
    assert Settings.read(host=host, no_keys=True).public
    assert Settings.read(host=host, keys=tmp_path / "keys").public
    for local in ("127.0.0.1", "localhost", "::1"):
        assert not Settings.read(host=local).public


def test_keys_are_kept_as_hashes_that_only_the_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    ann, bob = add_key(file, "ann"), add_key(file, "bob")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ann not in file.read_text()
    assert set(json.loads(file.read_text())) == {"ann", "bob"}
    keys = Keys(file)
    assert keys.client(f"Bearer {ann}") == keys.client(f"bearer {ann} ") == "ann"
    basic = base64.b64encode(f"whoever:{bob}".encode()).decode()
    assert keys.client(f"Basic {basic}") == "bob"
    for wrong in (None, "", "Bearer", f"Bearer {ann[:-1]}", "Basic !", f"Digest {ann}", f"Bearer {ann} {bob}"):
        with pytest.raises(Unauthorized):
            keys.client(wrong)
    with pytest.raises(BadInput, match="has a key for 'ann'"):
        add_key(file, "ann")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ann": 1}', '{"ann": "zz"}', "{"])
def test_a_file_that_holds_no_keys(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(text)
    with pytest.raises(BadInput, match="hold"):
        Keys(file)
    with pytest.raises(BadInput, match="holds no keys"):
        Keys(tmp_path / "none.json")


def test_loras_embeddings_and_hooks_are_checked_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diffusion_artifact: Path
) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(b"no tensors")
    for given, error, said in (
        ({"lora_folder": tmp_path / "none"}, BadInput, "is no folder"),
        ({"embedding": [file]}, BadInput, "x.safetensors"),
        ({"hook": ["none"]}, UsageError, "no hook 'none'"),
        ({"hook": ["wildcards"]}, UsageError, "needs its folder"),
        ({"hook": [f"wildcards:folder={tmp_path},seed=1"]}, UsageError, "no option"),
    ):
        with pytest.raises(error, match=said):
            models_for([diffusion_artifact], Settings.read(**given))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VITRIFY_SERVE_HOOK", '["wildcards:folder=."]')
    settings = Settings.read(lora_folder=Path("."), embedding=[])
    (info,) = models_for([diffusion_artifact], settings).values()
    assert (info.hooks, info.lora_folder, info.loras) == (("wildcards",), tmp_path.resolve(), ("x",))
    worker = worker_settings(settings, {}, "cpu")
    assert (worker.hooks, worker.lora_folder) == (("wildcards:folder=.",), tmp_path.resolve())
