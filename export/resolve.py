"""What a user names to run: an artifact, or a source that is exported into the cache first."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from ..core.artifact import Artifact, hash_file
from ..core.cache import Cache, key_of
from ..core.errors import BadInput, Busy
from ..core.machine import installed
from ..core.progress import Event, Report, silent
from ..pipelines.load import open_artifact
from .changed import NO_CHANGES, Changes
from .given import given_artifact
from .graph import OPSET
from .graphs import FORM
from .hub import is_hub_id
from .job import ExportJob, find_source
from .layout import files_of
from .source import Source

KIND = "artifacts"


def artifact_for(
    given: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    config: str | None = None,
    prediction_type: str | None = None,
    control: bool = False,
    changes: Changes = NO_CHANGES,
    report: Report = silent,
) -> Artifact:
    """Open the artifact in a folder, or export the source in it (or on the hub) into the cache and open that.

    Args:
        revision, variant, token, offline: of a source, as `find_source` takes them.
        config, prediction_type: of a single checkpoint, see `open_single_file`.
        control: its denoiser shall take a ControlNet's residuals.
        changes: what else the export changes of it.

    Raises:
        UsageError: an option of sources for an artifact, or an artifact that takes no ControlNet where one is wanted.
        Busy: another process is exporting the same source into the cache.
        VitrifyError: it is neither, cannot be exported, or is larger than the cache.
    """
    here = given_artifact(
        given, revision=revision, variant=variant, config=config, prediction_type=prediction_type, control=control,
        changes=changes,
    )  # fmt: skip
    if here is not None:
        return here
    if not Path(given).exists() and not is_hub_id(given):
        raise BadInput(f"{given} does not exist.", "Give an artifact, a model's folder, or a hub id as owner/name.")
    source = find_source(
        given,
        revision=revision,
        variant=variant,
        token=token,
        offline=offline,
        config=config,
        prediction_type=prediction_type,
        report=report,
    )
    source = changes.apply(source, token=token, offline=offline, report=report)
    key, cache = artifact_key(source, control), Cache()
    found = cache.get(KIND, key)
    if found is None:
        _export(source, cache, key, control, report)
        found = cache.get(KIND, key)
    if found is None:
        raise BadInput(
            f"The artifact of {given} is larger than the cache may be ({cache.limit} bytes, $VITRIFY_CACHE_MAX).",
            "Raise VITRIFY_CACHE_MAX, or make it with `vitrify export` and name the artifact.",
        )
    return open_artifact(found / source.name)


def artifact_key(source: Source, control: bool = False) -> str:
    """The key of a source's artifact: whatever would make it another one.

    control: its denoiser takes a ControlNet's residuals.

    Configs and tokenizers enter by what they hold, weights by size and time, for they are gigabytes.
    """
    weights = sorted({e.file.resolve() for c in source.components for e in c.checkpoint.values()})
    return key_of(
        {
            "name": source.name,
            "architecture": source.architecture,
            "revision": source.revision,
            "variant": source.variant,
            "files": {name: hash_file(path) for name, path in files_of(source).items()},
            "weights": [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in weights],
            "vitrify": installed("vitrify"),
            "form": FORM,
            "opset": OPSET,
            **({"settings": dict(source.settings)} if source.settings else {}),
            **({"control": True} if control else {}),
        }
    )


def _export(source: Source, cache: Cache, key: str, control: bool, report: Report) -> None:
    """Make the cache's entry: a folder that holds the artifact under the source's name, for results name it."""
    with ExitStack() as stack:
        try:
            scratch = stack.enter_context(cache.put(KIND, key, exclusive=True))
        except Busy as exc:
            raise Busy(
                f"Another process is exporting {source.given} into the cache.", "Wait for it to end, then run it again."
            ) from exc
        note = f"{source.given} is exported into the cache; `vitrify export` keeps it elsewhere"
        report(Event("export", note=note))
        ExportJob(source, scratch / source.name, report=report, cache=cache, control=control).run()
