"""The page: files of the package, served as they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import PurePosixPath

from fastapi import APIRouter, Request
from fastapi.responses import Response

from .gate import Gate

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent. tag: its ETag, a hash of its bytes."""

    data: bytes = field(repr=False)
    type: str
    tag: str


def page_files() -> dict[str, File]:
    """Name -> file, of all files of the page; a file that is not here is not served."""
    found = {}
    for entry in files(__package__).joinpath("page").iterdir():
        kind = TYPES.get(PurePosixPath(entry.name).suffix)
        if kind is not None and entry.is_file():
            data = entry.read_bytes()
            found[entry.name] = File(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return found


def router(gate: Gate) -> APIRouter:
    """/ and /page/NAME, for everybody: the page holds nothing of anyone's. It asks for a key where one is due."""
    routes = APIRouter(include_in_schema=False)
    known = page_files()

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def index(http: Request) -> Response:
        return _sent(http, known["index.html"])

    @routes.api_route("/favicon.ico", methods=["GET", "HEAD"])
    async def favicon(http: Request) -> Response:
        """Browsers ask for it where no page names one."""
        return _sent(http, known["icon.svg"])

    @routes.api_route("/page/{name}", methods=["GET", "HEAD"])
    async def asset(http: Request, name: str) -> Response:
        file = known.get(name)
        if file is None:
            return Response("There is no such file.", 404, media_type="text/plain")
        return _sent(http, file)

    return routes


def _sent(http: Request, file: File) -> Response:
    """The file, or 304 where the browser has it. It asks each time: modules of two versions must not meet."""
    headers = {"ETag": file.tag, "Cache-Control": "no-cache"}
    tags = [tag.strip().removeprefix("W/") for tag in http.headers.get("if-none-match", "").split(",")]
    if file.tag in tags or "*" in tags:
        return Response(status_code=304, headers=headers)
    return Response(file.data, media_type=file.type, headers=headers)
