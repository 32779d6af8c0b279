"""The same application on Ray Serve: how it is put together, started here, and ended."""

from __future__ import annotations

import http.client
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.errors import MissingDependency, UsageError, VitrifyError
from .logs import set_up_logs
from .run import address_of, bound, default_state, limits_of, models_for, worker_settings
from .settings import Settings

APP = "vitrify"
_CPUS = 0.01  # that Ray reserves for a replica: none is refused for want of cores on a small machine
_ONGOING = 10_000  # calls that `Jobs` and a front may have at once
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # of Ray Serve itself
_FIRST = 15.0  # seconds that a front has to answer once Ray says that it runs
_LAST = 5.0  # seconds that the rest has to end once the grace is over
_REPLICAS = re.compile(r"([1-9][0-9]{0,3})(?:-([1-9][0-9]{0,3}))?")


def run_on_ray(
    folders: Sequence[Path],
    settings: Settings,
    *,
    replicas: str = "2",
    address: str | None = None,
    json_logs: bool = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; what runs then may finish within `settings.grace`.

    Args:
        replicas: of the fronts and of each kind of models: a number, or LEAST-MOST to let Ray scale the models.
        address: of a cluster that runs; without it, and without $RAY_ADDRESS, one is started here.

    Raises:
        MissingDependency: Ray is not installed. UsageError: the port is taken, or a setting makes no sense here.
        VitrifyError: Ray did not start it.
    """
    ray, serve = _ray()
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        with bound(settings.host, settings.port) as free:  # Ray would only log that it is taken
            settings = settings.model_copy(update={"port": int(free.getsockname()[1])})
    app = application(folders, settings, replicas, json_logs=json_logs)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    set_up_logs(as_json=json_logs)
    ray.init(address=address, include_dashboard=False, logging_level="WARNING")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    if address != "local" and APP in serve.status().applications:
        ray.shutdown()
        raise UsageError("This cluster serves vitrify already.", "End that with `serve delete vitrify`, or use it.")
    try:
        try:
            serve.start(
                proxy_location="HeadOnly" if address == "local" else "EveryNode",
                http_options={"host": settings.host, "port": settings.port},
                logging_config=_QUIET,
            )
            serve.run(app, name=APP, route_prefix="/")
        except RuntimeError as exc:
            raise VitrifyError(f"Ray Serve did not start: {exc}.", "Look at the lines above, and Ray's logs.") from exc
        at = address_of(settings.host, settings.port)
        if not _answers(settings):
            raise UsageError(
                f"Nothing answers at {at}: Ray Serve runs on this cluster already, and listens elsewhere.",
                "Give its --host and --port, or end it with `serve shutdown`.",
            )
        print(f"{at}  {', '.join(path.name for path in folders)}", file=sys.stderr, flush=True)
        asked.wait()
        asked.clear()
        _drain(serve, settings, asked)
    finally:
        if address == "local":
            serve.shutdown()
        else:
            serve.delete(APP)
        ray.shutdown()


def _answers(settings: Settings) -> bool:
    """Whether a front answers, within some seconds, at the address that was asked for."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    until = time.monotonic() + _FIRST
    while time.monotonic() < until:
        connection = http.client.HTTPConnection(host, settings.port, timeout=5)
        try:
            connection.request("GET", "/healthz")
            if connection.getresponse().getheader("x-served-by"):
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    return False


def _drain(serve: Any, settings: Settings, again: threading.Event) -> None:
    """Let what runs finish; a second signal ends it at once."""
    done = serve.get_deployment_handle("Jobs", APP).drain.remote()
    waiting = settings.grace + _LAST
    while waiting > 0 and not again.is_set():
        try:
            done.result(timeout_s=0.2)
            return
        except TimeoutError:
            waiting -= 0.2


def build(args: dict[str, Any]) -> Any:
    """The application for `serve run` and `serve deploy`: import path `vitrify.serve.on_ray:build`.

    Args:
        args: `models`, the artifacts' folders, which are at the same place on every machine; `replicas`; and every
            setting of the server but `host` and `port`, which are Ray's own.

    Raises:
        UsageError: there are neither keys nor `no_keys`, since Ray alone knows who can reach its proxies. And what
            `application` raises.
    """
    _ray()
    given = dict(args)
    models, replicas = given.pop("models", []), str(given.pop("replicas", "2"))
    folders = [Path(one) for one in (models.split(",") if isinstance(models, str) else models)]
    if not folders:
        raise UsageError("No models are given.", "Give the artifacts' folders as `models`.")
    if "host" in given or "port" in given:
        raise UsageError("`host` and `port` are Ray's own.", "Give them as `http_options`.")
    settings = Settings.read(None, **given, host="0.0.0.0")  # others may reach Ray's proxies, by any name
    return application(folders, settings, replicas)


def application(folders: Sequence[Path], settings: Settings, replicas: str, *, json_logs: bool = False) -> Any:
    """Fronts, jobs and models, bound to each other.

    Raises:
        UsageError: the replicas are no number, more than one device is named, or a setting is not done here.
        BadInput, BadArtifact: what cannot be served.
    """
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    from .ray_deployments import Front, Jobs
    from .ray_models import Models
    from .ray_work import Lane

    least, most = replicas_of(replicas)
    if len(settings.device) > 1:
        raise UsageError(f"{len(settings.device)} devices are named.", "Name one: on Ray, replicas take their place.")
    if settings.draw_batch > 1:
        raise UsageError("On Ray, pictures of several jobs are not drawn in one call.", "Leave draw_batch out.")
    models = models_for(folders, settings)
    common: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": _CPUS}, "max_ongoing_requests": _ONGOING,
        "health_check_period_s": 2, "graceful_shutdown_wait_loop_s": 0.2,
        "logging_config": _QUIET,
    }  # fmt: skip
    deployed = {}
    for lane, name in (("slow", "Drawing"), ("quick", "Labelling")):
        held = {n: i.path for n, i in models.items() if (i.draws or i.control) == (lane == "slow")}
        if not held:
            continue
        more: dict[str, Any] = {"num_replicas": least}
        waits = settings.timeout + _LAST  # one that Ray takes away finishes what it runs
        if least < most:
            target = 1 if lane == "slow" else max(1, settings.batch // 2)
            more = {"autoscaling_config": scaling(least, most, target)}
        if lane == "slow":
            more["request_router_config"] = RequestRouterConfig(
                request_router_class=f"{__package__}.ray_router:LeastBusy"
            )
        worker = worker_settings(settings, held, settings.device[0] if settings.device else None, json_logs=json_logs)
        handle = serve.deployment(Models).options(name=name, graceful_shutdown_timeout_s=waits, **common, **more)
        deployed[lane] = Lane(handle.bind(worker, settings.worker_memory, json_logs), tuple(held), least, most)
    state = (settings.state or default_state(settings.port)).resolve()
    jobs = serve.deployment(Jobs).options(num_replicas=1, graceful_shutdown_timeout_s=_LAST, **common)
    bound_jobs = jobs.bind(
        models, state, limits_of(settings), tuple(settings.pinned), deployed, settings.grace, json_logs
    )
    front = serve.deployment(serve.ingress()(Front)).options(
        name="Front", num_replicas=least, graceful_shutdown_timeout_s=_LAST, **common
    )
    return front.bind(bound_jobs, models, settings.model_dump(mode="json"), json_logs)


def scaling(least: int, most: int, target: int) -> dict[str, Any]:
    """Ray's autoscaling: so many calls a replica, up within seconds, down after a minute."""
    return {
        "min_replicas": least, "max_replicas": most, "target_ongoing_requests": target, "upscale_delay_s": 3,
        "downscale_delay_s": 60, "metrics_interval_s": 1, "look_back_period_s": 3,
    }  # fmt: skip


def replicas_of(text: str) -> tuple[int, int]:
    """ "2" -> (2, 2), "1-4" -> (1, 4). Raises UsageError."""
    found = _REPLICAS.fullmatch(text)
    least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 0 < least <= most:
        raise UsageError(f"{text!r} is no number of replicas.", "Give one as 2, or the least and the most as 1-4.")
    return least, most


def _ray() -> tuple[Any, Any]:
    try:
        import ray
        from ray import serve
    except ImportError as exc:
        raise MissingDependency("Ray is not installed.", 'pip install "vitrify[ray]"') from exc
    return ray, serve
