"""Exceptions of huggingface_hub, of its HTTP library and of the disk, as errors of ours that say what to do."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import BadInput, DiskError, VitrifyError

# Each HTTP library that some huggingface_hub uses; they share no base class.
HTTP_LIBRARIES = {"requests", "urllib3", "httpx", "httpx2", "httpcore", "httpcore2"}


@contextmanager
def translated(repo_id: str, revision: str | None) -> Iterator[None]:
    """Every exception of huggingface_hub, its HTTP library and the disk, as one of ours."""
    try:
        yield
    except VitrifyError:
        raise
    except Exception as exc:
        error = _translation(exc, repo_id, revision)
        if error is None:
            raise
        raise error from exc


def _translation(exc: BaseException, repo_id: str, revision: str | None) -> VitrifyError | None:
    import huggingface_hub.errors as hub

    if isinstance(exc, hub.LocalEntryNotFoundError) and exc.__cause__ is not None:
        return _translation(exc.__cause__, repo_id, revision)  # how a download says that its request failed
    sign_in = "pass --token or run `hf auth login`"
    status = getattr(getattr(exc, "response", None), "status_code", None)
    if isinstance(exc, hub.GatedRepoError) or (status == 403 and isinstance(exc, hub.HfHubHTTPError)):
        fix = f"Accept the licence at https://huggingface.co/{repo_id}, then {sign_in}."
        return BadInput(f"{repo_id} is gated: its owner gives access on request.", fix)
    if isinstance(exc, hub.RevisionNotFoundError):
        return BadInput(f"{repo_id} has no revision {revision!r}.", "Pass a branch, tag or commit that it has.")
    if isinstance(exc, hub.DisabledRepoError):
        return BadInput(f"{repo_id} was disabled by the Hub.", "Use another model.")
    if isinstance(exc, hub.RepositoryNotFoundError):
        what = f"{repo_id} is no path here, and on the Hub it does not exist or is private."
        return BadInput(what, f"Check the spelling (owner/name); for a private one {sign_in}.")
    if status == 401:
        return BadInput(
            "The Hub refuses the token: invalid or expired.", "Pass another --token or run `hf auth login`."
        )
    if status == 429:
        return BadInput("The Hub allows no more requests for now.", f"Wait some minutes, or {sign_in}.")
    if isinstance(exc, hub.OfflineModeIsEnabled):
        return BadInput(
            "HF_HUB_OFFLINE is set, so nothing is fetched.", "Unset it, or pass --offline to use the cache."
        )
    if isinstance(exc, hub.EntryNotFoundError):
        return BadInput(f"{repo_id} lost a file while it was fetched: {exc}", "Run it again.")
    if isinstance(exc, hub.HFValidationError):
        return BadInput(f"{repo_id!r} is no repository of the Hub: {exc}", "Give owner/name, or a folder.")
    libraries = {kind.__module__.partition(".")[0] for kind in type(exc).__mro__}
    if isinstance(exc, hub.HfHubHTTPError | ConnectionError | TimeoutError) or libraries & HTTP_LIBRARIES:
        why = str(exc).strip().splitlines()[0] if str(exc) else type(exc)
        return BadInput(
            f"{repo_id} is no path here, and the Hub cannot be reached for it: {why}",
            f"{_meant(repo_id)}Check the connection (HF_ENDPOINT, proxy) and run it again; a cached one: --offline.",
        )
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(f"The disk is full: {repo_id} was not fetched whole.", "Make room, or set HF_HOME elsewhere.")
    if isinstance(exc, OSError):
        what = f"The Hub's cache failed for {repo_id}: {exc}."
        return DiskError(what, "Check its permissions and the disk, or set HF_HOME to another folder.")
    return None


def _meant(repo_id: str) -> str:
    """A folder whose name is nearly this one, as a question; empty where there is none."""
    path = Path(repo_id)
    try:
        folders = [p.name for p in path.parent.iterdir() if p.is_dir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f"Did you mean {path.with_name(near[0])}? " if near else ""
