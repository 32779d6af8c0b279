"""What the server's tests share: servers in processes of their own, with the built-in models behind real sockets."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image
from safetensors.numpy import load_file, save_file

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")

_START = 120  # seconds that a server has to be ready
ENGINE = os.environ.get("VITRIFY_TEST_ENGINE", "local")  # make test-ray sets it: the same tests, on Ray


@dataclass
class Server:
    """A server that answers. draws, labels: the names of its models. keys: client -> key."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    draws: str = "emoji"
    labels: str = "emotions"
    keys: dict[str, str] = field(default_factory=dict)
    state: Path = Path()
    at_once: int = 2 if ENGINE == "ray" else 1  # pictures that are drawn beside each other

    def client(self, name: str | None = None, **options: Any) -> Any:
        """An httpx client, with the key of `name` where one is given."""
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120, **options)

    def children(self) -> list[int]:
        """The ids of its processes, its own not among them."""
        found = Path(f"/proc/{self.process.pid}/task")
        return [int(id) for task in found.iterdir() for id in (task / "children").read_text().split()]

    def worker(self) -> int:
        """The process that holds the models."""
        for id in self.children():
            if b"spawn_main" in Path(f"/proc/{id}/cmdline").read_bytes():
                return id
        raise AssertionError("there is no worker")

    def resident(self, pid: int | None = None) -> int:
        """Bytes of memory that the server, or another process, holds."""
        status = Path(f"/proc/{pid or self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))

    def wait_ready(self) -> None:
        """Until /readyz says so."""
        _wait(self)

    def idle(self, http: Any, seconds: float = 20) -> bool:
        """Whether nothing of the caller runs or waits, within so many seconds."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if not http.get("/v1/queue").json()["mine"]:
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="session")
def start_server(
    diffusion_artifact: Path, emotions_artifact: Path, environment: dict[str, str], tmp_path_factory: Any
) -> Iterator[Callable[..., Server]]:
    """start_server(*OPTIONS, keys=("name", ...)) starts `vitrify serve` with both models; all end with the session.

    state: a folder that a server before had. models: others than these two. port: the one that it had.
    """
    running: list[Server] = []

    from vitrify.serve.keys import add_key

    def start(
        *options: object,
        keys: tuple[str, ...] = (),
        state: Path | None = None,
        models: tuple[Path, ...] = (diffusion_artifact, emotions_artifact),
        wait: bool = True,
    ) -> Server:
        folder = tmp_path_factory.mktemp("server")
        made = {name: add_key(folder / "keys.json", name) for name in keys}
        port = free_port()
        command = [sys.executable, "-m", "vitrify", "serve", *models]
        command += ["--port", port, "--state", state or folder / "state", "--device", "cpu", "--threads", 1]
        command += ["--engine", "ray", "--replicas", "2"] if ENGINE == "ray" else []
        command += options
        command += ["--keys", folder / "keys.json"] if keys else []
        log = folder / "log"
        with log.open("wb") as out:
            process = subprocess.Popen([*map(str, command)], env=environment, stdout=out, stderr=out)
        server = Server(f"http://127.0.0.1:{port}", process, log, diffusion_artifact.name, emotions_artifact.name)
        server.state = state or folder / "state"
        server.keys.update(made)
        running.append(server)
        if wait:
            _wait(server)
        return server

    try:
        yield start
    finally:
        for server in running:
            server.process.send_signal(signal.SIGTERM)
        for server in running:
            try:
                server.process.wait(60)
            except subprocess.TimeoutExpired:
                server.process.kill()
                server.process.wait()


@pytest.fixture(scope="session")
def server(start_server: Callable[..., Server]) -> Server:
    """Without keys, as a user starts it at home."""
    return start_server()


@pytest.fixture(scope="module")
def pictures_of(diffusion_artifact: Path) -> Iterator[Callable[..., Any]]:
    """pictures_of(PROMPT, **more): what the pipeline draws by itself for the same request."""
    import vitrify
    from vitrify.runtimes.base import Options

    pipeline: Any = vitrify.load(diffusion_artifact, "cpu", options=Options(threads=1))
    yield lambda prompt, **more: pipeline.generate(prompt, **more).images
    pipeline.close()


@pytest.fixture(scope="session")
def control_artifact(diffusion_source: Path, shared: Path) -> Path:
    """The built-in model, exported with inputs for ControlNets; it draws what the plain one does."""
    return exported(diffusion_source, shared / "with-control" / "steered", control=True)


@pytest.fixture(scope="session")
def net_artifact(diffusion_source: Path, shared: Path) -> Path:
    """A random ControlNet for it, whose residuals are not zero."""
    source = shared / "net-source"
    with FileLock(f"{source}.lock"):
        if not source.exists():
            save_net(diffusion_source, source)
    return exported(source, shared / "with-control" / "lines")


@pytest.fixture(scope="session")
def lora_folder(diffusion_source: Path, shared: Path) -> Path:
    """LoRAs for the built-in model, `style` and, in a folder below, `deep`; and `broken`, which is none."""
    folder = shared / "loras"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            half = shared / ".loras"
            (half / "more").mkdir(parents=True)
            for seed, file in enumerate((half / "style.safetensors", half / "more" / "deep.safetensors")):
                save_lora(diffusion_source, file, seed)
            (half / "broken.safetensors").write_bytes(b"no tensors")
            half.rename(folder)
    return folder


@pytest.fixture(scope="session")
def embedding_file(shared: Path) -> Path:
    """Two vectors for the built-in model's encoder, for the word `zyx`; they shift what is drawn."""
    file = shared / "zyx.safetensors"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            vectors = np.random.default_rng(5).standard_normal((2, 64)).astype(np.float32)
            save_file({"emb_params": vectors}, file)
    return file


@pytest.fixture(scope="session")
def words_folder(shared: Path) -> Path:
    """Word lists of the hook wildcards: one of a single colour, and one that names a LoRA by a path."""
    folder = shared / "words"
    folder.mkdir(exist_ok=True)
    (folder / "colour.txt").write_text("red\n")
    (folder / "part.txt").write_text("ra\n")
    return folder


@pytest.fixture(scope="session")
def able(
    start_server: Callable[..., Server],
    control_artifact: Path,
    net_artifact: Path,
    diffusion_artifact: Path,
    lora_folder: Path,
    embedding_file: Path,
    words_folder: Path,
) -> Server:
    """A server with a ControlNet, LoRAs, an embedding and a hook; its `draws` takes the ControlNet, `emoji` none."""
    options = (
        "--lora-folder",
        lora_folder,
        "--embedding",
        embedding_file,
        "--hook",
        f"wildcards:folder={words_folder}",
    )
    server = start_server(*options, models=(control_artifact, net_artifact, diffusion_artifact))
    server.draws = control_artifact.name
    return server


def exported(source: Path, target: Path, **options: Any) -> Path:
    """An artifact of a model, made once a session."""
    pytest.importorskip("torch", reason="needs the extra export")
    from vitrify.export.job import export_model

    target.parent.mkdir(exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.exists():
            export_model(source, target, verify=False, **options)
    return target


def save_net(model: Path, folder: Path) -> None:
    """A ControlNet for the model's UNet, with numbers where diffusers begins with zeros."""
    torch = pytest.importorskip("torch", reason="needs the extra export")
    diffusers = pytest.importorskip("diffusers", reason="needs the extra export")
    unet = diffusers.UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32)
    torch.manual_seed(3)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(16, 32, 64))
    with torch.no_grad():
        for parameter in net.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    net.save_pretrained(folder)


def save_lora(model: Path, file: Path, seed: int) -> None:
    """A LoRA of rank 2 over the UNet's attention, as kohya-ss writes it."""
    rng, tensors = np.random.default_rng(seed), {}
    for name, weight in load_file(model / "unet" / "diffusion_pytorch_model.safetensors").items():
        if ".attn" in name and name.endswith("to_q.weight"):
            layer = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
            rows, columns = weight.shape
            tensors[f"{layer}.lora_down.weight"] = rng.standard_normal((2, columns)).astype(np.float32)
            tensors[f"{layer}.lora_up.weight"] = (rng.standard_normal((rows, 2)) * 0.2).astype(np.float32)
            tensors[f"{layer}.alpha"] = np.array(2, np.float32)
    save_file(tensors, file)


@pytest.fixture(scope="session")
def guarded(start_server: Callable[..., Server]) -> Server:
    """With the keys of `ann` and `bob`."""
    return start_server(keys=("ann", "bob"))


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def picture() -> Callable[[str], bytes]:
    """picture(FORMAT) makes one with edges, so that labels depend on it."""
    return _picture


@pytest.fixture(scope="session")
def png() -> bytes:
    return _picture("PNG")


def _picture(form: str, size: tuple[int, int] = (96, 80)) -> bytes:
    image = Image.new("RGB", size, (250, 200, 0))
    image.paste((40, 40, 40), (20, 20, 40, 60))
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _wait(server: Server) -> None:
    until = time.monotonic() + _START
    while time.monotonic() < until and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    server.process.kill()
    pytest.fail(f"the server was not ready: {server.log.read_text(errors='replace')[-3000:]}")
