"""What the server counts, in the form that Prometheus reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from .jobs import Job
from .work import Work

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300)


class Metrics:
    """Counters of jobs, fed by `told`; what waits and is held is read when it is asked for."""

    def __init__(self, work: Work) -> None:
        self.registry = CollectorRegistry()
        label = ("model", "kind")
        self._jobs = Counter("vitrify_jobs", "Jobs that ended.", (*label, "state"), registry=self.registry)
        seconds: dict[str, Any] = {"buckets": _SECONDS, "registry": self.registry}
        self._wait = Histogram("vitrify_wait_seconds", "From a job's arrival to its beginning.", label, **seconds)
        self._run = Histogram("vitrify_run_seconds", "From a job's beginning to its end.", label, **seconds)
        self._step = Histogram("vitrify_step_seconds", "Of a denoising step.", ("model",), **seconds)
        pictures: dict[str, Any] = {"buckets": (1, 2, 4, 8, 16, 32), "registry": self.registry}
        self.registry.register(_Now(work))
        self._batch = Histogram("vitrify_batch_pictures", "Labelled in one call.", ("model",), **pictures)

    def told(self, event: str, job: Job) -> None:
        """What the core says of a job."""
        if event == "started" and job.started is not None:
            self._wait.labels(job.model, job.kind).observe(job.started - job.created)
        elif event == "ended":
            self._jobs.labels(job.model, job.kind, job.state.value).inc()
            if job.started is not None and job.finished is not None:
                self._run.labels(job.model, job.kind).observe(job.finished - job.started)
            details = job.result.details if job.result is not None else {}
            first = details.get("place") == 0  # of those in one call, which has its times once
            for seconds in details.get("timings", {}).get("steps", ()) if first else ():
                self._step.labels(job.model).observe(seconds)
            if first and "batch" in details:
                self._batch.labels(job.model).observe(details["batch"])

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _Now:
    def __init__(self, work: Work) -> None:
        self._work = work

    def describe(self) -> Iterable[Any]:
        return []  # so that it is not read before it is asked for

    def collect(self) -> Iterable[Any]:
        waiting = GaugeMetricFamily("vitrify_queue_jobs", "Jobs that wait.", labels=["lane"])
        seconds = GaugeMetricFamily("vitrify_queue_seconds", "Work that waits, by the measured speed.", labels=["lane"])
        for name, lane in self._work.lanes.items():
            waiting.add_metric([name], len(lane))
            seconds.add_metric([name], lane.seconds)
        where = ["worker", "device"]
        memory = GaugeMetricFamily("vitrify_worker_resident_bytes", "Memory of a worker.", labels=where)
        ready = GaugeMetricFamily("vitrify_worker_ready", "Whether a worker takes jobs.", labels=where)
        starts = CounterMetricFamily("vitrify_worker_restarts", "Times that a worker was lost.", labels=where)
        models = GaugeMetricFamily("vitrify_model_bytes", "Weights of open models.", labels=[*where, "model"])
        for number, worker in enumerate(self._work.workers()):
            at = [str(number), worker.device]
            memory.add_metric(at, worker.resident)
            ready.add_metric(at, worker.ready)
            starts.add_metric(at, worker.restarts)
            for name, opened in worker.models.items():
                models.add_metric([*at, name], opened.bytes)
        return [waiting, seconds, memory, ready, starts, models]
