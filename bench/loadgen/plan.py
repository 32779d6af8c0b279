"""What is asked of a LoadGen run, and whether it can be asked of this model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ...core.errors import BadArtifact, UsageError
from ..spec import CLASSIFY, TEXT2IMG

if TYPE_CHECKING:
    from ...core.artifact import Artifact

SINGLE_STREAM, OFFLINE, SERVER = "single-stream", "offline", "server"
SCENARIOS = {SINGLE_STREAM: "SingleStream", OFFLINE: "Offline", SERVER: "Server"}
"""As the command line names them -> as LoadGen does."""
PERFORMANCE, ACCURACY = "performance", "accuracy"
MODES = {PERFORMANCE: "PerformanceOnly", ACCURACY: "AccuracyOnly"}

BENCHMARKS = {CLASSIFY: "resnet50", TEXT2IMG: "stable-diffusion-xl"}
"""Task -> MLPerf's own benchmark of that task, whose rules are taken from the configuration inside LoadGen."""

TENSORS, FILES, PROMPTS = "tensors", "files", "prompts"
"""What a request carries: prepared pixels (Open Inference Protocol V2), a picture's file, or a prompt (both
POST /models/NAME, as Hugging Face's client sends them)."""

BATCH = {CLASSIFY: 8, TEXT2IMG: 1}
CLIENTS, STEPS = 8, 4


@dataclass(frozen=True)
class LoadPlan:
    """One run.

    artifact: its folder. url: of a server, or of one of its endpoints; None runs the artifact in a process here.
    runtime, device, threads: as `pipelines.load.load` takes them; only without a url.
    pictures: a folder; None: some are drawn. prompts: a file with one a line; None: some of our own.
    qps: Server: queries that arrive in a second. Offline: what is expected. None: from a warm-up.
    latency_ms: Server: what 99 % must stay within; None: MLPerf's.
    duration: least seconds; None: MLPerf's. batch: samples in one call at most; None: the task's.
    clients: connections to a server at the same time. steps: denoising steps of a picture. key: of the server.
    """

    artifact: str
    scenario: str = SINGLE_STREAM
    mode: str = PERFORMANCE
    url: str | None = None
    runtime: str | None = None
    device: str | None = None
    threads: int = 0
    pictures: str | None = None
    prompts: str | None = None
    qps: float | None = None
    latency_ms: float | None = None
    duration: float | None = None
    batch: int | None = None
    clients: int | None = None
    steps: int | None = None
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LoadPlan:
        return cls(**data)


@dataclass(frozen=True)
class Endpoint:
    """Where requests go. base: "http://host:port", with a path where the server lies below one. carries: see above."""

    base: str
    model: str
    carries: str


def task_of(artifact: Artifact) -> str:
    """What is asked of a model of this kind.

    Raises:
        BadArtifact: it neither labels nor draws.
    """
    tasks = artifact.pipeline.get("tasks")
    for task in (CLASSIFY, TEXT2IMG):
        if isinstance(tasks, list) and task in tasks:
            return task
    raise BadArtifact(
        f"{artifact.name} neither labels pictures nor draws them from text.", "Name a classifier or a pipeline."
    )


def setting(artifact: Artifact, name: str) -> Any:
    """What the manifest says of its pipeline.

    Raises:
        BadArtifact: it says nothing.
    """
    if name not in artifact.pipeline:
        raise BadArtifact(f"The manifest of {artifact.root} names no {name}.", "Export the model again.")
    return artifact.pipeline[name]


def endpoint_of(url: str, name: str, task: str) -> Endpoint:
    """The endpoint that a URL names; of a server alone, the one that suits the task and the model's name.

    Raises:
        UsageError: it is no such URL.
    """
    fix = f"Give http://HOST:PORT, its /models/{name} or its /v2/models/{name}/infer."
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise UsageError(f"--url {url!r} is no URL: {exc}.", fix) from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise UsageError(f"--url {url!r} is not the URL of a server.", fix)
    if parts.username or parts.password:
        raise UsageError("--url holds a name or a password, which logs would keep.", "Give it with --key.")
    base, path = f"{parts.scheme}://{parts.netloc}", [unquote(one) for one in parts.path.split("/") if one]
    tensors = task == CLASSIFY
    match path:
        case []:
            return Endpoint(base, name, TENSORS if tensors else PROMPTS)
        case ["v2", "models", model] | ["v2", "models", model, "infer"] if tensors:
            return Endpoint(base, model, TENSORS)
        case ["v2", *_] if not tensors:
            raise UsageError(
                f"{name} draws pictures, and the Open Inference Protocol is spoken for classifiers.",
                f"Give {base}/models/{name}.",
            )
        case ["models", model]:
            return Endpoint(base, model, FILES if tensors else PROMPTS)
    raise UsageError(f"--url {url!r} is no endpoint that can be asked.", fix)


def check(plan: LoadPlan, name: str, task: str) -> None:
    """Refuse options that mean nothing for this run, or make no sense. name, task: of the model.

    Raises:
        UsageError: there is one.
    """
    if plan.scenario not in SCENARIOS or plan.mode not in MODES:
        raise UsageError(
            f"There is no scenario {plan.scenario!r} in mode {plan.mode!r}.",
            f"Scenarios are {', '.join(SCENARIOS)}; modes {', '.join(MODES)}.",
        )
    numbers = {"qps": plan.qps, "latency-ms": plan.latency_ms, "duration": plan.duration}
    for option, number in numbers.items():
        if number is not None and not 0 < number < 1e9:
            raise UsageError(f"--{option} is {number:g}.", "Give a number above 0.")
    counts = {"batch": plan.batch, "clients": plan.clients, "steps": plan.steps}
    for option, count in counts.items():
        if count is not None and count < 1:
            raise UsageError(f"--{option} is {count}.", "Give 1 or more.")
    endpoint = endpoint_of(plan.url, name, task) if plan.url else None
    if endpoint is not None and endpoint.carries != TENSORS and (plan.batch or 1) > 1:
        raise UsageError(f"A request to {plan.url} carries one of the {endpoint.carries}.", "Leave --batch out.")
    server, single = plan.scenario == SERVER, plan.scenario == SINGLE_STREAM
    wrong = {
        "latency-ms": plan.latency_ms is not None and not server and "is what the server scenario must keep",
        "qps": plan.qps is not None and single and "is of the server and offline scenarios; here one follows the other",
        "batch": plan.batch is not None and single and "is of the server and offline scenarios; here each comes alone",
        "clients": plan.clients is not None and (single or not plan.url) and "is of many queries to a --url",
        "key": plan.key is not None and not plan.url and "is of a server, and there is no --url",
        "pictures": plan.pictures is not None and task != CLASSIFY and "is of classifiers, and this model draws",
        "prompts": plan.prompts is not None and task != TEXT2IMG and "is of models that draw, and this one labels",
        "steps": plan.steps is not None and task != TEXT2IMG and "is of models that draw, and this one labels",
        "runtime": plan.runtime is not None and plan.url and "is the server's to choose",
        "device": plan.device is not None and plan.url and "is the server's to choose",
        "threads": plan.threads and plan.url and "is the server's to choose",
        "duration": plan.duration is not None
        and plan.mode == ACCURACY
        and "is of performance; here each sample is one",
    }
    for name, why in wrong.items():
        if why:
            raise UsageError(f"--{name} {why}.", "Leave it out.")
