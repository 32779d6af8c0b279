"""Fetching, from a small server that speaks the Hub's API: what is asked for, what is refused, what a cache holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import save

from vitrify.core.artifact import Artifact
from vitrify.core.errors import BadInput, DiskError, MissingDependency, ProofFailed
from vitrify.core.progress import Event
from vitrify.core.safetensors_header import open_checkpoint
from vitrify.export.hub import fetch, is_hub_id
from vitrify.export.job import export_model
from vitrify.export.source import open_source
from vitrify.export.verify import verify_artifact

pytest.importorskip("huggingface_hub", reason="needs vitrify[export]")
transformers = pytest.importorskip("transformers", reason="needs vitrify[export]")

FACES = "dima806/facial_emotions_image_detection"
COMMIT = "1" * 40
LABELS = ("sad", "disgust", "angry", "neutral", "fear", "surprise", "happy")


@dataclass
class Hub:
    """What the server has and what it was asked for."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=lambda: {"main": COMMIT, "v2": "2" * 40})
    gated: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    status: int = 0
    slow: bool = False

    def files(self, method: str = "GET") -> set[str]:
        """File names that were asked for with a method."""
        return {
            path.split("/resolve/")[1].split("/", 1)[1] for m, path in self.asked if m == method and "/resolve/" in path
        }


class Handler(BaseHTTPRequestHandler):
    """GET /api/models/ID[/revision/REV] and HEAD, GET /ID/resolve/REV/FILE, with the Hub's headers and error codes."""

    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def reply(self, status: int, data: bytes = b"", body: bool = True, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            for at in range(0, len(data), 65536):
                self.wfile.write(data[at : at + 65536])
                if self.hub.slow and len(data) > 65536:
                    time.sleep(0.2)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append((self.command, path))
        if self.hub.status:
            return self.reply(self.hub.status)
        if self.headers.get("Authorization") == "Bearer wrong":
            return self.reply(401, X_Error_Message="Invalid credentials in Authorization header")
        listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = listing or file
        assert found, path
        repo = found[1]
        if repo not in self.hub.repos:
            return self.reply(401, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        commit = self.hub.commits.get(found[2] or "main", found[2])
        if commit not in self.hub.commits.values():
            return self.reply(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        files = self.hub.repos[repo]
        if listing:
            siblings = [{"rfilename": name, "size": len(data), "blobId": "0"} for name, data in files.items()]
            return self.reply(200, json.dumps({"id": repo, "sha": commit, "siblings": siblings}).encode())
        if repo in self.hub.gated and self.headers.get("Authorization") != "Bearer good":
            return self.reply(403, X_Error_Code="GatedRepo", X_Error_Message="Access to model is restricted", body=body)
        assert file
        data = files[file[3]]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        part = data[int(start[1]) :] if start else data
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        return self.reply(206 if start else 200, part, body, ETag=etag, X_Repo_Commit=commit, Accept_Ranges="bytes")


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test file that goes online, to a hub on localhost."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # read when the library was imported


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    handler = type("Bound", (Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def weights(size: int = 4) -> bytes:
    return bytes(save({"w": np.arange(size, dtype=np.float32)}))


def config(**more: Any) -> bytes:
    made = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **more}
    return json.dumps(made).encode()


UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 8,
    "block_out_channels": [8],
    "attention_head_dim": 4,
}
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8]}


def vit_weights() -> bytes:
    """A small ViT with seven labels and random weights."""
    from safetensors.torch import save as save_torch

    made = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=4,
        id2label=dict(enumerate(LABELS)), label2id={label: i for i, label in enumerate(LABELS)},
    )  # fmt: skip
    return bytes(save_torch(transformers.ViTForImageClassification(made).state_dict(), {"format": "pt"}))


def faces() -> dict[str, bytes]:
    """The files of that repository by name; a checkpoint folder of its training lies beside the model."""
    labels = {str(i): label for i, label in enumerate(LABELS)}
    model = {
        "config.json": config(id2label=labels),
        "model.safetensors": vit_weights(),
        "preprocessor_config.json": b'{"size": {"height": 224, "width": 224}}',
        "training_args.bin": b"PK pickle",
    }
    training = {
        **model,
        **dict.fromkeys(("optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"), b"PK"),
    }
    beside = {f"checkpoint-1234/{name}": data for name, data in training.items()}
    return {".gitattributes": b"*.safetensors filter=lfs\n", "README.md": b"# faces", **model, **beside}


def pipeline(*, variants: tuple[str, ...] = ("", ".fp16")) -> dict[str, bytes]:
    """The files of a Stable Diffusion repository, with everything that must not be fetched."""
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0", "requires_safety_checker": True,
        "feature_extractor": ["transformers", "CLIPImageProcessor"], "image_encoder": [None, None],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    empty = (
        "feature_extractor/preprocessor_config.json", "safety_checker/config.json", "scheduler/scheduler_config.json",
        "tokenizer/merges.txt", "tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "README.md",
    )  # fmt: skip
    pickles = ("v1-5-pruned.ckpt", "vae/diffusion_pytorch_model.bin", "unet/flax_model.msgpack", "unet/model.onnx")
    others = dict.fromkeys(("v1-5-pruned.safetensors", "safety_checker/model.safetensors"), weights())
    files = {"model_index.json": json.dumps(index).encode(), **dict.fromkeys(empty, b"{}"), **others}
    for name, table in (("text_encoder", {"hidden_size": 8}), ("unet", UNET), ("vae", VAE)):
        files[f"{name}/config.json"] = json.dumps(table).encode()
    files |= dict.fromkeys(pickles, b"PK")
    for variant in variants:
        files[f"text_encoder/model{variant}.safetensors"] = weights()
        files[f"vae/diffusion_pytorch_model{variant}.safetensors"] = weights(5)
        end = f"{variant}.json" if variant else ".json"
        shards = [f"diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        files[f"unet/diffusion_pytorch_model.safetensors.index{end}"] = json.dumps(
            {"metadata": {}, "weight_map": {"a": shards[0], "b": shards[1]}}
        ).encode()
        for name, shard in zip("ab", shards, strict=True):
            files[f"unet/{shard}"] = bytes(save({name: np.ones(3, np.float32)}))
    return files


def get(hub: Hub, repo: str, cache: Path, **options: Any) -> Any:
    return fetch(repo, endpoint=hub.url, cache=cache, **options)


def test_only_what_a_classifier_needs(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    events: list[Event] = []
    fetched = get(hub, FACES, tmp_path, report=events.append)
    needed = {"config.json", "preprocessor_config.json", "model.safetensors"}
    assert hub.files("GET") == hub.files("HEAD") == needed
    assert {path.name for path in fetched.folder.iterdir()} == needed
    assert fetched.revision == COMMIT == fetched.folder.name
    assert (fetched.folder / "model.safetensors").read_bytes() == hub.repos[FACES]["model.safetensors"]
    assert open_checkpoint(fetched.folder)
    assert "model.safetensors" in events[-2].note
    assert events[-1].done == events[-1].total


def test_the_cache_serves_offline_and_again(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    first = get(hub, FACES, tmp_path)
    hub.asked.clear()
    assert get(hub, FACES, tmp_path, offline=True) == first
    assert not hub.asked
    assert get(hub, FACES, tmp_path) == first
    assert not hub.files("GET")
    assert get(hub, FACES, tmp_path, revision=COMMIT, offline=True) == first


def test_a_pipeline_without_what_is_not_run(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/sd"] = pipeline()
    folder = get(hub, "a/sd", tmp_path).folder
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


def test_a_variant_and_no_other(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/sd"] = pipeline()
    folder = get(hub, "a/sd", tmp_path, variant="fp16").folder
    assert all(".fp16" in name for name in hub.files() if name.endswith(".safetensors"))
    assert set(open_checkpoint(folder / "unet", variant="fp16")) == {"a", "b"}
    with pytest.raises(BadInput, match=r"a/sd, \w+, has no variant 'bf16'; it has: plain, fp16\."):
        get(hub, "a/sd", tmp_path, variant="bf16")
    hub.repos["a/half"] = pipeline(variants=(".fp16",))
    with pytest.raises(BadInput, match=r"has no plain safetensors; it has: fp16.*--variant fp16"):
        get(hub, "a/half", tmp_path)
    assert not any("a/half" in path and path.endswith(".safetensors") for _, path in hub.asked)


def test_a_revision(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    assert get(hub, FACES, tmp_path, revision="v2").revision == "2" * 40
    assert get(hub, FACES, tmp_path, revision="v2", offline=True).revision == "2" * 40
    with pytest.raises(BadInput, match=r"at revision main is not in the cache"):
        get(hub, FACES, tmp_path, revision="main", offline=True)
    with pytest.raises(BadInput, match=r"has no revision 'v9'.*branch, tag or commit"):
        get(hub, FACES, tmp_path, revision="v9")


def test_a_gated_repository(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/gated"] = faces()
    hub.gated.add("a/gated")
    with pytest.raises(BadInput, match=r"is gated.*huggingface\.co/a/gated, then pass --token or run `hf auth login`"):
        get(hub, "a/gated", tmp_path)
    assert get(hub, "a/gated", tmp_path, token="good").revision == COMMIT
    with pytest.raises(BadInput, match="refuses the token"):
        get(hub, "a/gated", tmp_path, token="wrong")


def test_what_does_not_exist(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a/none .*does not exist or is private.*Check the spelling"):
        get(hub, "a/none", tmp_path)
    with pytest.raises(BadInput, match="no repository of the Hub"):
        get(hub, "a/b/c", tmp_path)


@pytest.mark.parametrize(("status", "says"), [(429, "no more requests"), (500, "cannot be reached"), (403, "gated")])
def test_a_hub_in_trouble(hub: Hub, tmp_path: Path, status: int, says: str) -> None:
    hub.status = status
    with pytest.raises(BadInput, match=says):
        get(hub, FACES, tmp_path)


def test_no_hub_at_all(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot be reached.*Check the connection"):
        fetch(FACES, endpoint="http://127.0.0.1:9", cache=tmp_path)
    with pytest.raises(BadInput, match=r"is not in the cache .*Run it once online"):
        fetch(FACES, cache=tmp_path, offline=True)


@pytest.mark.parametrize("names", [["pytorch_model.bin"], ["pytorch_model.bin", "tf_model.h5", "training_args.bin"]])
def test_only_pickles(hub: Hub, tmp_path: Path, names: list[str]) -> None:
    hub.repos["a/old"] = {"config.json": config(), **dict.fromkeys(names, b"PK")}
    with pytest.raises(BadInput, match=r"no safetensors, only pytorch_model\.bin.*safetensors/convert"):
        get(hub, "a/old", tmp_path)
    assert not hub.files() & set(names)


def test_repositories_of_another_kind(hub: Hub, tmp_path: Path) -> None:
    hub.repos["a/single"] = {"README.md": b"", "sd_xl_base.safetensors": weights(), "sd.ckpt": b"PK"}
    with pytest.raises(BadInput, match=r"neither model_index\.json nor config\.json \(it has sd\.ckpt, sd_xl"):
        get(hub, "a/single", tmp_path)
    hub.repos["a/bare"] = {"config.json": config()}
    with pytest.raises(BadInput, match=r"a/bare has no weights"):
        get(hub, "a/bare", tmp_path)
    files = pipeline()
    del files["unet/diffusion_pytorch_model-00002-of-00002.safetensors"]
    hub.repos["a/holed"] = files
    with pytest.raises(BadInput, match=r"lacks unet/diffusion_pytorch_model-00002-of-00002\.safetensors"):
        get(hub, "a/holed", tmp_path)
    hub.repos["a/broken"] = {**pipeline(), "model_index.json": b"{"}
    with pytest.raises(BadInput, match="is not JSON"):
        get(hub, "a/broken", tmp_path)


def test_a_cache_without_the_weights(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    (get(hub, FACES, tmp_path).folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"In the cache \(offline\).*no weights.*Run it once online"):
        get(hub, FACES, tmp_path, offline=True)


def test_a_full_disk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repos[FACES] = faces()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9000, 8000, 1000))  # type: ignore[attr-defined]
    with pytest.raises(DiskError, match=r"GB free.*Make room"):
        get(hub, FACES, tmp_path)
    assert "model.safetensors" not in hub.files()


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match="cache failed"):
        get(hub, FACES, tmp_path / "file")


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
            if name == "huggingface_hub":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(MissingDependency, match=r'pip install "vitrify\[export\]"'):
        fetch(FACES)


def child(hub: Hub, home: Path, **env: str) -> subprocess.Popen[str]:
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


def test_the_environment_is_respected(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = faces()
    online = child(hub, tmp_path).communicate(timeout=120)[0]
    assert Path(online.strip()).is_relative_to(tmp_path / "hub")
    hub.asked.clear()
    assert child(hub, tmp_path, HF_HUB_OFFLINE="1").communicate(timeout=120)[0] == online
    assert not hub.asked
    empty = child(hub, tmp_path / "empty", HF_HUB_OFFLINE="1").communicate(timeout=120)[1]
    assert "is not in the cache" in empty


def test_ctrl_c_leaves_no_half_file_and_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.repos[FACES] = {**faces(), "model.safetensors": weights(2_000_000)}
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


def refusal(folder: Path, files: dict[str, bytes], given: str) -> str:
    """What `open_source` says of these files in a folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    with pytest.raises(BadInput) as caught:
        open_source(folder, given=given)
    return str(caught.value)


def bare(files: dict[str, bytes], name: str, **changed: Any) -> dict[str, bytes]:
    return files | {name: json.dumps(json.loads(files[name]) | changed).encode()}


UNSUPPORTED = {
    "another pipeline": lambda: bare(pipeline(), "model_index.json", _class_name="FluxPipeline"),
    "another model type": lambda: bare(faces(), "config.json", model_type="bert", architectures=["BertForMaskedLM"]),
    "another head": lambda: bare(faces(), "config.json", architectures=["ViTModel"]),
    "no preprocessing": lambda: {n: d for n, d in faces().items() if n != "preprocessor_config.json"},
    "inpainting": lambda: bare(pipeline(), "unet/config.json", in_channels=9),
}


@pytest.mark.parametrize("kind", UNSUPPORTED)
def test_a_model_that_is_not_supported_is_refused_before_its_weights(hub: Hub, tmp_path: Path, kind: str) -> None:
    hub.repos["a/model"] = UNSUPPORTED[kind]()
    said = refusal(tmp_path / "folder", hub.repos["a/model"], "a/model")
    by_class = kind.startswith("another")  # for which the cache's weights need not be known either
    for offline in (False, True) if by_class else (False,):
        with pytest.raises(BadInput) as caught:
            get(hub, "a/model", tmp_path / "cache", offline=offline)
        assert str(caught.value) == said
    assert hub.files("HEAD"), "the class is known from a file of the hub"
    assert not [path for _, path in hub.asked if path.endswith((".safetensors", ".bin", ".ckpt"))]


@pytest.fixture
def this_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub and the cache that are used where nothing else is said."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub.repos["a/faces"] = small_classifier()
    return hub


def small_classifier() -> dict[str, bytes]:
    """A ViT that can be exported: its weights also as a variant, which is another model."""
    made = json.loads(config())
    made |= {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    made |= {"image_size": 8, "patch_size": 4, "id2label": {str(i): label for i, label in enumerate(LABELS)}}
    return {
        "config.json": json.dumps(made).encode(),
        "preprocessor_config.json": json.dumps({"size": {"height": 8, "width": 8}}).encode(),
        "model.safetensors": vit_weights(),
        "model.other.safetensors": vit_weights(),
    }


def test_an_artifact_of_a_hub_id_is_verified_at_its_revision_and_variant(
    this_hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = export_model("a/faces", tmp_path / "out", variant="other", verify=False)
    assert artifact.model["source"] == "a/faces"
    assert (artifact.model["revision"], artifact.model["variant"]) == (COMMIT, "other")
    assert artifact.built["command"] == f"vitrify export a/faces --revision {COMMIT} --variant other --no-verify"
    # the hub goes on: another model now, under the branch that was exported
    this_hub.commits |= {"main": "3" * 40, "v1": COMMIT}
    (tmp_path / "elsewhere/a/faces").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")  # a folder of that name is not what was exported
    for offline in (True, None):
        this_hub.asked.clear()
        proved = verify_artifact(tmp_path / "out", offline=offline)
        assert proved.components["model"].proof["numeric"]["relative"] <= 1e-4
        assert bool(this_hub.asked) is (offline is None)
    assert Artifact.load(tmp_path / "out").components["model"].proof == proved.components["model"].proof
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProofFailed, match="Weight "):
        verify_artifact(tmp_path / "out", "a/faces", revision=COMMIT)  # the plain variant has other weights
    verify_artifact(tmp_path / "out", "a/faces", revision=COMMIT, variant="other")


def test_a_hub_id_that_is_gone_says_what_was_tried(this_hub: Hub, tmp_path: Path) -> None:
    export_model("a/faces", tmp_path / "out", verify=False)
    del this_hub.repos["a/faces"]
    with pytest.raises(BadInput, match=rf"a/faces at revision {COMMIT} on the hub, could not be had\..*--against"):
        verify_artifact(tmp_path / "out")
    shutil.rmtree(tmp_path / "hub")
    with pytest.raises(BadInput, match=r"is not in the cache.*Run it once online.*--against"):
        verify_artifact(tmp_path / "out", offline=True)
