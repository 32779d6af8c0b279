"""A model from the Hugging Face Hub: only the files that an export needs, into the Hub's own cache.

What is fetched: for a pipeline its model_index.json and, of the components that we run, configs, tokenizer files,
scheduler settings and safetensors; for a transformers model config.json, preprocessor_config.json and safetensors.
Never: pickles, other frameworks' weights, training leftovers, code.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import BadInput, DiskError, MissingDependency
from ..core.progress import Event, Report, silent
from ..core.safetensors_header import OTHER_FRAMEWORKS, PICKLES, STEMS
from .families.vae import check_vae
from .hub_errors import translated
from .source import PREPROCESSOR, check_supported, describe_source

if TYPE_CHECKING:
    import types

HUB_ID = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
ID_LIMIT = 96  # the Hub's own
FILE_ENDINGS = (".safetensors", ".gguf", ".json", ".git", *PICKLES, *OTHER_FRAMEWORKS)

WEIGHTED = re.compile(r"(text_encoder|unet|transformer|vae)(_\d+)?")
PLAIN = re.compile(r"(tokenizer|scheduler)(_\d+)?")
PLAIN_ENDINGS = (".json", ".txt", ".model")  # vocabularies, merges, SentencePiece models
SHARD = re.compile(r"-\d{5}-of-\d{5}")

ONLINE = "Run it once online: without --offline and with HF_HUB_OFFLINE unset."


@dataclass(frozen=True)
class Fetched:
    """A snapshot in the Hub's cache. revision: the commit that it is, also where a branch was asked for."""

    folder: Path
    revision: str


class _Lacking(BadInput):
    """A snapshot that does not hold what is needed; the Hub may have what a cache has not."""


@dataclass(frozen=True)
class _Snapshot:
    """Files of one commit: their sizes (None: unknown) and how to have one on disk."""

    commit: str
    sizes: Mapping[str, int | None]
    get: Callable[[str], Path]
    is_here: Callable[[str], bool]


def is_hub_id(text: str) -> bool:
    """Whether a source names a repository of the Hub: "owner/name" or "name", and nothing on this disk."""
    if len(text) > ID_LIMIT or not HUB_ID.fullmatch(text) or text.endswith(FILE_ENDINGS):
        return False
    return not Path(text).exists()


def fetch(
    repo_id: str,
    *,
    revision: str | None = None,
    variant: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    report: Report | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Fetched:
    """Download what an export of a model needs, or find it in the cache. What is there already is not fetched again.

    An interrupted download leaves no half file in the snapshot and is taken up where it stopped.

    Args:
        repo_id: "owner/name".
        revision: branch, tag or commit; the default branch if None.
        variant: of the weights, such as "fp16"; the plain ones if None. No other is taken instead.
        token: the Hub's; None uses the one that `hf auth login` stored.
        offline: True asks nobody; None follows HF_HUB_OFFLINE.
        report: is told of each file.
        endpoint, cache: None uses HF_ENDPOINT, and HF_HUB_CACHE or HF_HOME.

    Raises:
        BadInput: no such repository, revision or variant; gated or private; a bad token; offline and not in the cache;
            the Hub cannot be reached; pickles only; not a model's repository; a model that is not supported, before
            any of its weights are fetched.
        DiskError: no room, or the cache cannot be written.
        MissingDependency: huggingface_hub is not installed.
    """

    def collect(snapshot: _Snapshot) -> Fetched:
        return _collect(repo_id, snapshot, variant, report or silent)

    return _fetched(collect, repo_id, revision, token, offline, endpoint, cache)


def fetch_vae(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool | None = None,
    report: Report | None = None,
    endpoint: str | None = None,
    cache: Path | None = None,
) -> Fetched:
    """As `fetch`, of a repository that is a VAE, or of a pipeline's VAE and nothing else of it."""

    def collect(snapshot: _Snapshot) -> Fetched:
        return _collect_vae(repo_id, snapshot, report or silent)

    return _fetched(collect, repo_id, revision, token, offline, endpoint, cache)


def _fetched(
    collect: Callable[[_Snapshot], Fetched],
    repo_id: str,
    revision: str | None,
    token: str | None,
    offline: bool | None,
    endpoint: str | None,
    cache: Path | None,
) -> Fetched:
    """What `collect` wants of the repository, as the Hub has it, or as the cache does."""
    library = _library()
    if offline is None:
        offline = bool(library.constants.HF_HUB_OFFLINE)
    with translated(repo_id, revision):
        if offline:
            snapshot = _cached(library, repo_id, revision, cache)
            try:
                return collect(snapshot)
            except _Lacking as exc:
                raise BadInput(f"In the cache (offline): {exc.what}", ONLINE) from exc
        return collect(_remote(library, repo_id, revision, token, endpoint, cache))


def _library() -> types.ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ModuleNotFoundError as exc:
        if exc.name != "huggingface_hub":
            raise MissingDependency(
                f"huggingface_hub is installed but does not import: {exc}.", "Install it again."
            ) from exc
        what = "Fetching from the Hub needs huggingface_hub, which is not installed."
        raise MissingDependency(what, 'Run `pip install "vitrify[export]"`.') from exc
    library: types.ModuleType = huggingface_hub
    return library


def _remote(
    library: Any, repo_id: str, revision: str | None, token: str | None, endpoint: str | None, cache: Path | None
) -> _Snapshot:
    """The repository as the Hub has it now."""
    api = library.HfApi(endpoint=endpoint, token=token)

    def listing(wanted: str | None) -> tuple[str, dict[str, int | None]]:
        info = api.model_info(repo_id, revision=wanted, files_metadata=True)
        return info.sha, {file.rfilename: file.size for file in info.siblings or ()}

    def download(name: str, wanted: str | None) -> Path:
        path = library.hf_hub_download(
            repo_id, name, revision=wanted, token=token, endpoint=endpoint, cache_dir=cache and str(cache)
        )
        return Path(path)

    commit, sizes = listing(revision)
    # The first file by the name that was asked for, so that the cache learns what commit it is: offline needs that.
    root = _root(repo_id, sizes)
    served = download(root, revision).parent.name
    if served != commit:  # the branch moved in between
        commit, sizes = listing(served)

    def is_here(name: str) -> bool:
        path = library.try_to_load_from_cache(repo_id, name, cache_dir=cache and str(cache), revision=commit)
        return isinstance(path, str)

    return _Snapshot(commit, sizes, lambda name: download(name, commit), is_here)


def _cached(library: Any, repo_id: str, revision: str | None, cache: Path | None) -> _Snapshot:
    """What the cache holds of the repository."""
    at = {"cache_dir": cache and str(cache), "revision": revision}
    paths = (library.try_to_load_from_cache(repo_id, root, **at) for root in ("model_index.json", "config.json"))
    path = next((path for path in paths if isinstance(path, str)), None)
    if path is None:
        where = f"{repo_id}{f' at revision {revision}' if revision else ''}"
        what = (
            f"{where} is not in the cache ({cache or library.constants.HF_HUB_CACHE}), and offline nothing is fetched."
        )
        raise BadInput(what, ONLINE)
    folder = Path(path).parent
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    return _Snapshot(folder.name, dict.fromkeys(names), lambda name: folder / name, lambda name: name in names)


def _collect(repo_id: str, snapshot: _Snapshot, variant: str | None, report: Report) -> Fetched:
    """Have every file that is needed on disk.

    Weights come last: a cache that has them all is whole, which is all that can be known offline; and a model that
    is not supported is refused for what its configs say, a few kB instead of gigabytes.
    """
    names = snapshot.sizes
    root = _root(repo_id, names)
    path = snapshot.get(root)
    index = _read_json(path)
    check_supported(repo_id, root, index)
    if root == "config.json":
        small = [name for name in (root, PREPROCESSOR) if name in names]
        weighted = [""]
    else:
        components = [name for name, value in index.items() if isinstance(value, list) and any(value)]
        weighted = [f"{name}/" for name in components if WEIGHTED.fullmatch(name)]
        plain = tuple(f"{name}/" for name in components if PLAIN.fullmatch(name))
        small = [name for name in names if name.startswith(plain) and name.endswith(PLAIN_ENDINGS)] if plain else []
        small += [f"{folder}config.json" for folder in weighted]
    check = partial(describe_source, path.parent, repo_id)
    return _had(repo_id, snapshot, path.parent, small, weighted, variant, check, report)


def _collect_vae(repo_id: str, snapshot: _Snapshot, report: Report) -> Fetched:
    """Have a VAE's files on disk."""
    root = _root(repo_id, snapshot.sizes)
    folder = "" if root == "config.json" else "vae/"
    config = f"{folder}config.json"
    if config not in snapshot.sizes:
        raise _Lacking(f"{repo_id} has no VAE ({config}).", "Name a repository that is one, or a pipeline's.")
    path = snapshot.get(root)
    check = partial(check_vae, repo_id, _read_json(snapshot.get(config)))
    return _had(repo_id, snapshot, path.parent, [config], [folder], None, check, report)


def _had(
    repo_id: str,
    snapshot: _Snapshot,
    here: Path,
    small: list[str],
    weighted: list[str],
    variant: str | None,
    check: Callable[[], object],
    report: Report,
) -> Fetched:
    """The snapshot with these files and the weights of these folders on disk.

    Args:
        check: looks at the small files before weights are fetched.
    """
    names = snapshot.sizes
    heads = {folder: _weights(repo_id, names, folder, variant) for folder in weighted}
    indexes = {folder: head for folder, head in heads.items() if head.endswith(".json")}
    _get(repo_id, snapshot, here, [*small, *indexes.values()], report)
    check()
    weights = [head for folder, head in heads.items() if folder not in indexes]
    for folder, name in indexes.items():
        shards = _read_json(snapshot.get(name)).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
            raise BadInput(f"{repo_id} has a broken {name}: no weight_map.", "Tell the model's owner.")
        weights += sorted({folder + shard for shard in shards.values()})
    _get(repo_id, snapshot, here, weights, report)
    return Fetched(here, snapshot.commit)


def _root(repo_id: str, names: Mapping[str, int | None]) -> str:
    for root in ("model_index.json", "config.json"):
        if root in names:
            return root
    single = [name for name in names if "/" not in name and name.endswith((".safetensors", *PICKLES))]
    has = f" (it has {', '.join(sorted(single)[:3])})" if single else ""
    raise BadInput(
        f"{repo_id} has neither model_index.json nor config.json{has}.",
        "Name a repository in diffusers or transformers layout; many models have one beside the original.",
    )


def _weights(repo_id: str, names: Mapping[str, int | None], folder: str, variant: str | None) -> str:
    """The safetensors file of a folder ("" or "unet/"), or the index of its shards.

    Raises:
        BadInput: there is none of that variant; says what there is.
    """
    infix = f".{variant}" if variant else ""
    for stem in STEMS:
        for name in (f"{folder}{stem}{infix}.safetensors", f"{folder}{stem}.safetensors.index{infix}.json"):
            if name in names:
                return name
    here = sorted(name.removeprefix(folder) for name in names if name.startswith(folder))
    here = [name for name in here if "/" not in name]
    where = f"{repo_id}{f', {folder[:-1]},' if folder else ''}"
    variants = sorted({found for name in here if (found := _variant(name)) is not None})
    if variants:
        kind = f"variant {variant!r}" if variant else "plain safetensors"
        listed = ", ".join(v or "plain" for v in variants)
        first = next((v for v in variants if v), "")
        fix = f"Pass --variant {first}." if not variant else "Leave --variant out, or pass one of those."
        raise _Lacking(f"{where} has no {kind}; it has: {listed}.", fix)
    others = [name for name in here if name.endswith((*PICKLES, *OTHER_FRAMEWORKS)) and "training_args" not in name]
    if others:
        raise _Lacking(
            f"{where} has no safetensors, only {', '.join(others[:3])}; pickles can run any code and are not opened.",
            "Have https://huggingface.co/spaces/safetensors/convert convert it, then pass --revision refs/pr/N.",
        )
    raise _Lacking(f"{where} has no weights.", "Name a repository that holds a whole model.")


def _variant(name: str) -> str | None:
    """The variant that a weights file is ("" is the plain one), None for any other file."""
    for stem in STEMS:
        match = re.fullmatch(rf"{stem}(.*?)\.safetensors(?:\.index(.*)\.json)?", name)
        if match:
            return SHARD.sub("", match[1] + (match[2] or "")).removeprefix(".")
    return None


def _get(repo_id: str, snapshot: _Snapshot, folder: Path, wanted: list[str], report: Report) -> None:
    """Download the files that are not here yet, after a look at the room that they take."""
    names = list(dict.fromkeys(wanted))
    lost = [name for name in names if name not in snapshot.sizes]
    if lost:
        what = f"{repo_id} at {snapshot.commit[:12]} lacks {', '.join(lost[:3])}."
        raise _Lacking(what, "The repository is not whole: tell the model's owner, or pass another --revision.")
    sizes = {name: snapshot.sizes[name] or 0 for name in names if not snapshot.is_here(name)}
    if not sizes:
        return
    total, done = sum(sizes.values()), 0
    free = shutil.disk_usage(folder).free
    if total > free:
        what = f"{repo_id} needs {total / 1e9:.1f} GB more, {folder} has {free / 1e9:.1f} GB free."
        raise DiskError(what, "Make room (`hf cache prune`), or set HF_HOME to a larger disk.")
    for name, size in sizes.items():
        report(Event("download", done, total, "B", f"{repo_id}: {name}"))
        snapshot.get(name)
        done += size
    report(Event("download", done, total, "B", f"{repo_id}: {len(sizes)} files"))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise BadInput(f"{path} is not JSON: {exc}.", "Delete it and fetch it again.") from exc
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds no JSON object.", "Delete it and fetch it again.")
    return value
