"""What a user names to run: an artifact, or a source that is exported into the cache first."""

from __future__ import annotations

from pathlib import Path

from ..core.artifact import Artifact, is_artifact
from ..core.cache import Cache, key_of
from ..core.errors import BadInput
from ..core.progress import Event, Report, silent
from ..pipelines.foreign import is_foreign
from ..pipelines.load import open_artifact
from .hub import is_hub_id
from .job import ExportJob, find_source

KIND = "artifacts"


def artifact_for(
    given: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    report: Report = silent,
) -> Artifact:
    """Open the artifact in a folder, or export the source in it (or on the hub) into the cache and open that.

    Raises:
        VitrifyError: it is neither, or cannot be exported.
    """
    folder = Path(given)
    plain = (folder / "model_index.json").is_file() or (folder / "config.json").is_file()
    if folder.exists() and (is_artifact(folder) or is_foreign(folder) or not plain):
        return open_artifact(folder)
    if not folder.exists() and not is_hub_id(given):
        raise BadInput(f"{given} does not exist.", "Give an artifact, a model's folder, or a hub id as owner/name.")
    source = find_source(given, revision=revision, variant=variant, token=token, report=report)
    files = sorted({e.file for c in source.components for e in c.checkpoint.values()})
    files += [c.config_path for c in source.components]
    key = key_of([source.index, [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]])
    cache = Cache()
    found = cache.get(KIND, key)
    if found is None:
        report(Event("export", note=f"{given} is exported into the cache; `vitrify export` keeps it elsewhere"))
        with cache.put(KIND, key) as scratch:
            ExportJob(source, scratch / "artifact", report=report, cache=cache).run()
        found = cache.get(KIND, key)
    if found is None:
        raise BadInput(
            f"{given} does not fit into the cache, or another process is exporting it.",
            "Export it with `vitrify export`, then name the artifact.",
        )
    return open_artifact(found / "artifact")
