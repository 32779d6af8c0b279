"""The libraries that an export needs: their versions, and what is said where one is missing or broken."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from ..core.errors import MissingDependency, VitrifyError
from ..core.machine import installed

_OURS = __name__.partition(".")[0]
_EXTRA = '"vitrify[export]"'


def version(library: str) -> str:
    """The installed version of an export library, without importing it.

    Raises:
        MissingDependency: it is not installed.
    """
    found = installed(library)
    if found is None:
        raise MissingDependency(f"Export needs {library}, which is not installed.", f"pip install {_EXTRA}")
    return found


@contextmanager
def export_libraries() -> Iterator[None]:
    """Translate the import of an export library that is not there or is broken, wherever in an export it happens.

    Raises:
        MissingDependency: says which, and how to install it.
    """
    try:
        yield
    except VitrifyError:
        raise
    except Exception as exc:
        library = library_that_failed(exc)
        if library is None:
            raise
        cause = _cause(exc)
        missing = cause.name if isinstance(cause, ModuleNotFoundError) else None
        # a part of a package that is there is a broken install, not a missing one
        if missing and importlib.util.find_spec(missing.partition(".")[0]) is None:
            raise MissingDependency(
                f"Export needs {missing}, which is not installed.", f"pip install {_EXTRA}"
            ) from exc
        first = (str(cause).splitlines() or [""])[0]
        raise MissingDependency(
            f"{library} is installed but does not import: {type(cause).__name__}: {first}.",
            f"pip install --force-reinstall {_EXTRA}",
        ) from exc


def library_that_failed(exc: BaseException) -> str | None:
    """The library whose import raised `exc`, whatever it raised; None where nothing was being imported.

    Libraries that import their parts late raise an error of their own `from` the import's; a broken one raises
    anything: OSError for a shared library, AttributeError for a partner of another version.
    """
    chain = list(_chain(exc))
    for one in chain:
        frame = one.__traceback__
        while frame is not None:
            code, names = frame.tb_frame.f_code, frame.tb_frame.f_globals
            package = str(names.get("__name__", "")).partition(".")[0]
            if code.co_name == "<module>" and package not in ("", "__main__", _OURS):
                return package
            frame = frame.tb_next
    named = [one.name.partition(".")[0] for one in chain if isinstance(one, ImportError) and one.name]
    return next((name for name in named if name != _OURS), None)


def _cause(exc: BaseException) -> BaseException:
    """The error that an import ended with, below what a library that imports late makes of it."""
    return next((one for one in reversed(list(_chain(exc))) if isinstance(one, ImportError)), list(_chain(exc))[-1])


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or (None if exc.__suppress_context__ else exc.__context__)
