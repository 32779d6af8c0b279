"""Forms (multipart/form-data), read from a body that is in memory already."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from .errors import BadRequest

KIND = "multipart/form-data"


async def read_form(
    http: Request, data: bytes, *, files: int, fields: int, longest: int, fix: str
) -> tuple[list[tuple[str, bytes]], list[tuple[str, str]]]:
    """The files of a form and its other fields, each with its name, in the order in which they were sent.

    Args:
        data: the body. files, fields: how many of each may be there. longest: bytes of a field. fix: said where the
            form is damaged.

    Raises:
        BadRequest: it is no form, is damaged, or has more parts than that.
    """

    async def body() -> AsyncIterator[bytes]:
        yield data

    parser = MultiPartParser(http.headers, body(), max_files=files, max_fields=fields, max_part_size=longest)  # type: ignore[arg-type]
    parser.spool_max_size = len(data) + 1  # it is in memory already
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, KeyError) as exc:
        said = getattr(exc, "message", None) or f"{type(exc).__name__}: {exc}"
        raise BadRequest(f"The form cannot be read: {said}", fix) from exc
    try:
        parts = form.multi_items()
        return (
            [(name, await part.read()) for name, part in parts if isinstance(part, UploadFile)],
            [(name, part) for name, part in parts if isinstance(part, str)],
        )
    finally:
        await form.close()


def kind_said(http: Request) -> str:
    """The body's type as the client says it, without its options; "" where it says none."""
    return http.headers.get("content-type", "").partition(";")[0].strip().lower()
