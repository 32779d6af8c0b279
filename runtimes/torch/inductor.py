"""PyTorch's compiler, inductor: where it keeps what it makes, and what is said where it cannot work."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...core.cache import Cache
from ...core.errors import Busy, DiskError, MissingDependency
from ...core.publish import link_or_copy
from .session import PROCESS

KIND = "inductor"  # of its entries in vitrify's cache
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
_WORK = ".work.part-"  # the cache removes such folders of processes that were killed
_LOCKS = "locks"
# kernels follow the number of threads of a call, not that of the machine that compiled them
SETTINGS: dict[str, Any] = {"cpp.dynamic_threads": True}
# of one code object; past the library's own bound of 8 it would compute eagerly, with a warning in its log alone
_TRACING = {
    "recompile_limit": 4096, "accumulated_recompile_limit": 65536, "fail_on_recompile_limit_hit": True,
    # else a block with a branch beside a layer, which is a hook, gets the code of one without
    "skip_nnmodule_hook_guards": False,
}  # fmt: skip


@contextmanager
def compiling(folder: Path) -> Iterator[None]:
    """Let the compiler work, and keep all that it makes in `folder`; one at a time in a process.

    It reads its folder from the environment alone, so the variable is set while this lasts, and put back.

    Raises:
        MissingDependency: there is no C++ compiler, or for a GPU no Triton.
    """
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor
    from torch._inductor.utils import clear_caches

    with PROCESS, inductor.patch(SETTINGS), dynamo.patch(_TRACING), warnings.catch_warnings():
        # of torchao's weights, which are hashed by all that they hold instead
        warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = str(folder)
        clear_caches()  # it takes for done what it remembers, also where that lies in another folder
        try:
            yield
        except Exception as exc:
            missing = _missing(exc)
            if missing is None:
                raise
            raise missing from exc
        finally:
            if before is None:
                os.environ.pop(_VARIABLE, None)  # the library sets it too
            else:
                os.environ[_VARIABLE] = before


def _missing(exc: BaseException) -> MissingDependency | None:
    seen: BaseException | None = exc
    said = f"{type(exc).__name__} {exc}"
    while seen is not None:
        said += f" {type(seen).__name__}"
        seen = seen.__cause__ or seen.__context__
    if "InvalidCxxCompiler" in said:
        return MissingDependency(
            "PyTorch compiles for a CPU with a C++ compiler, and finds none that works ($CXX, or g++).",
            "apt install g++, brew install gcc, or what your system has; without one, leave compile out.",
        )
    if "TritonMissing" in said:
        return MissingDependency("PyTorch compiles for a GPU with Triton, which is missing.", "pip install triton")
    return None


@contextmanager
def work_folder(key: str) -> Iterator[Path]:
    """A folder for one compilation, which holds what the cache has under this key; removed at the end.

    What was loaded from it stays loaded.
    """
    cache = Cache()
    place = cache.root / KIND
    try:
        place.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=_WORK, dir=place, ignore_cleanup_errors=True)
    except OSError:  # a cache that cannot be written: what is made is not kept, and that is told by `keep`
        made = tempfile.TemporaryDirectory(prefix="vitrify-", ignore_cleanup_errors=True)
    with made as name:
        entry = cache.get(KIND, key)
        if entry is not None:
            with suppress(FileNotFoundError):  # removed meanwhile by another process: compile again
                _link(entry, Path(name))
        yield Path(name)


def keep(folder: Path, key: str) -> str:
    """Put what a compilation made into the cache, whole; why not, where that failed, else nothing."""
    try:
        with Cache().put(KIND, key) as entry:
            _link(folder, entry)
    except (DiskError, Busy) as exc:
        return exc.what
    return ""


def _link(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        name = path.relative_to(source)
        if path.is_file() and name.parts[0] != _LOCKS and not path.name.startswith(".used"):
            link_or_copy(path, target / name)
