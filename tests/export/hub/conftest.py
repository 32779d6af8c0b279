"""A small server that speaks the Hub's API, what lies in its repositories, and what it was asked for."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from safetensors.numpy import save

COMMIT = "1" * 40
LABELS = ("sad", "disgust", "angry", "neutral", "fear", "surprise", "happy")


def weights(size: int = 4) -> bytes:
    return bytes(save({"w": np.arange(size, dtype=np.float32)}))


def config(**more: Any) -> bytes:
    made = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **more}
    return json.dumps(made).encode()


UNET = {
    "in_channels": 4, "out_channels": 4, "cross_attention_dim": 8, "block_out_channels": [8], "attention_head_dim": 4,
}  # fmt: skip
VAE = {"in_channels": 3, "out_channels": 3, "latent_channels": 4, "block_out_channels": [8]}


def faces() -> dict[str, bytes]:
    """The files of that repository by name; a checkpoint folder of its training lies beside the model."""
    labels = {str(i): label for i, label in enumerate(LABELS)}
    model = {
        "config.json": config(id2label=labels),
        "model.safetensors": weights(),
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
    weights: ClassVar = staticmethod(weights)
    config: ClassVar = staticmethod(config)
    faces: ClassVar = staticmethod(faces)
    pipeline: ClassVar = staticmethod(pipeline)

    def get(self, repo: str, cache: Path, **options: Any) -> Any:
        """Fetch one of its repositories."""
        from vitrify.export.hub import fetch

        return fetch(repo, endpoint=self.url, cache=cache, **options)

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
    """The tests of this folder go online, to a hub on localhost."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs vitrify[export]")
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
