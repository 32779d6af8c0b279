"""What goes wrong with a job, with codes that clients can rely on; and the one table of HTTP statuses."""

from __future__ import annotations

from ..core.errors import VitrifyError


class UnknownJob(VitrifyError):
    """No job of this id that this client may see."""

    code = "unknown_job"


class ExpiredJob(VitrifyError):
    """A job whose results were removed, for their age or for room."""

    code = "expired_job"


class UnknownModel(VitrifyError):
    """No model of this name is served."""

    code = "unknown_model"


class Unsupported(VitrifyError):
    """The model cannot do what was asked of it."""

    code = "unsupported"


class BadRequest(VitrifyError):
    """A body that cannot be read, or fields that make no sense."""

    code = "bad_request"


class BadField(BadRequest):
    """A field that makes no sense. param: its name; None for the body as a whole."""

    def __init__(self, what: str, fix: str, param: str | None = None) -> None:
        super().__init__(what, fix)
        self.param = param

    def __reduce__(self) -> tuple[type[BadField], tuple[str, str, str | None]]:  # type: ignore[override]
        return type(self), (self.what, self.fix, self.param)


class TooLarge(VitrifyError):
    """A body or a picture above the limit."""

    code = "too_large"


class Unauthorized(VitrifyError):
    """No key, or one that is not known."""

    code = "unauthorized"


class NoSuchPath(VitrifyError):
    """Nothing is served at this path, or not by this method."""

    code = "not_found"


class RetryLater(VitrifyError):
    """Nothing was done; the same request may succeed later. after: seconds."""

    code = "busy"

    def __init__(self, what: str, fix: str, after: float = 1.0) -> None:
        super().__init__(what, fix)
        self.after = after

    def __reduce__(self) -> tuple[type[RetryLater], tuple[str, str, float]]:  # type: ignore[override]
        return type(self), (self.what, self.fix, self.after)


class QueueFull(RetryLater):
    """The queue has no room for what this job costs."""

    code = "queue_full"


class RateLimited(RetryLater):
    """This client asked too often."""

    code = "rate_limited"


class Draining(RetryLater):
    """The server is stopping and takes nothing new."""

    code = "draining"


class Conflict(VitrifyError):
    """The Idempotency-Key was used for another request."""

    code = "conflict"


# code -> HTTP status; every other code is 500
STATUS = {
    "bad_request": 422, "usage": 422, "bad_input": 422, "unsupported": 422, "conflict": 422,
    "unauthorized": 401, "not_found": 404, "unknown_job": 404, "unknown_model": 404, "expired_job": 410,
    "too_large": 413, "queue_full": 429, "rate_limited": 429, "draining": 503, "busy": 503, "worker_lost": 503,
    "disk": 507, "deadline": 504, "cancelled": 499, "interrupted": 503, "out_of_memory": 503, "device": 503,
    "bad_artifact": 503,
}  # fmt: skip


def status_of(code: str) -> int:
    return STATUS.get(code, 500)
