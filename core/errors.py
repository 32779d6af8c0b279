"""The one tree of errors. Each says what happened and what to do about it.

The command line prints `what` and `fix` without a traceback and exits with `exit_code`; the server maps `code`
to a status.
"""

from __future__ import annotations


class VitrifyError(Exception):
    """Base of everything this package raises on purpose.

    Args:
        what: what was given and what was expected, one sentence.
        fix: what the user can do, one sentence or a command.
    """

    code = "error"
    exit_code = 1

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix

    def __reduce__(self) -> tuple[type[VitrifyError], tuple[str, str]]:
        return type(self), (self.what, self.fix)


class UsageError(VitrifyError):
    """An option or argument that makes no sense."""

    code = "usage"
    exit_code = 2


class BadInput(VitrifyError):
    """A model, picture or prompt that cannot be read or is not supported."""

    code = "bad_input"
    exit_code = 2


class Busy(VitrifyError):
    """Another process holds the lock on what was to be written."""

    code = "busy"
    exit_code = 2


class DiskError(VitrifyError):
    """The disk is full, read-only or failing."""

    code = "disk"
    exit_code = 2


class ProofFailed(VitrifyError):
    """A proof was run and the artifact is not what its source is."""

    code = "proof_failed"
    exit_code = 3


class MissingDependency(VitrifyError):
    """A library is not installed, or is installed and does not import."""

    code = "missing_dependency"
    exit_code = 4


class DeviceError(VitrifyError):
    """A device or a runtime that was named cannot be used."""

    code = "device"
    exit_code = 5


class RuntimeFailure(VitrifyError):
    """A runtime's library failed while it opened or ran a component."""

    code = "runtime"
    exit_code = 5


class NotFinite(RuntimeFailure):
    """A component gave NaN or infinity: not that it could not be run, but what came out."""

    code = "not_finite"


class BadArtifact(VitrifyError):
    """An artifact that is damaged, unsafe or newer than this version."""

    code = "bad_artifact"
    exit_code = 6


class Cancelled(VitrifyError):
    """The work was stopped on request; nothing half-written is left."""

    code = "cancelled"
    exit_code = 130


def first_line(exc: BaseException) -> str:
    """The first line of a library's message, or the kind of error where it has none; at most 300 characters."""
    return (str(exc).splitlines() or [type(exc).__name__])[0][:300]
