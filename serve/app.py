"""The HTTP application: protocols, page and operations over one job core."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from ..core.errors import VitrifyError
from . import a1111, huggingface, inference_v2, native, openai, page, reference
from .errors import BadRequest, NoSuchPath, status_of
from .gate import Gate, headers_of
from .interface import Core
from .metrics import CONTENT_TYPE
from .safety import Safety
from .settings import Settings

log = logging.getLogger("vitrify.serve")
Shape = Callable[[VitrifyError], dict[str, object]]
"""An error as a protocol's clients read it."""


def create_app(core: Core, settings: Settings) -> FastAPI:
    """The application. Who runs it starts and stops the core."""

    app = FastAPI(title="vitrify", docs_url=None, redoc_url=None)
    gate = Gate(core, settings)
    app.include_router(native.router(gate))
    for protocol in (huggingface, openai, a1111, inference_v2, page):
        app.include_router(protocol.router(gate))
    app.include_router(reference.router(app))
    shapes: list[tuple[str, Shape]] = [
        ("/models/", huggingface.shape),
        ("/v1/images", openai.shape),
        ("/sdapi", a1111.shape),
        ("/controlnet", a1111.shape),
        ("/v2", inference_v2.shape),
        ("/", _native_shape),
    ]
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])

    app.add_middleware(Safety, origins=settings.cors, local=not settings.public)

    @app.exception_handler(VitrifyError)
    async def told(http: Request, exc: VitrifyError) -> JSONResponse:
        shape = next(shape for prefix, shape in shapes if http.url.path.startswith(prefix))
        headers = headers_of(exc)
        if exc.code == "unauthorized":
            headers["WWW-Authenticate"] = 'Bearer, Basic realm="vitrify"'
        return JSONResponse(shape(exc), status_of(exc.code), headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(http: Request, exc: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"{'.'.join(map(str, e['loc'][1:]))}: {e['msg']}" for e in exc.errors()[:5])
        return await told(http, BadRequest(f"{said}.", "See /docs for the fields."))

    @app.exception_handler(HTTPException)
    async def nothing_there(http: Request, exc: HTTPException) -> JSONResponse:
        what = f"{http.method} {http.url.path[:200]!r}: {exc.detail}."
        found = await told(http, NoSuchPath(what, "See /docs for the paths."))
        found.status_code = exc.status_code
        found.headers.update(exc.headers or {})
        return found

    @app.exception_handler(Exception)
    async def broken(http: Request, exc: Exception) -> JSONResponse:
        log.exception("a fault of the server", exc_info=exc)
        return await told(http, VitrifyError(f"The server failed: {type(exc).__name__}.", "Report it with its log."))

    @app.get("/healthz", tags=["operations"])
    async def healthz() -> dict[str, str]:
        """The server answers."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["operations"])
    async def readyz() -> JSONResponse:
        """Every device has a worker that takes jobs."""
        view = await core.view()
        if view.ready:
            return JSONResponse({"status": "ready"})
        why = "draining" if view.draining else "a worker is starting"
        return JSONResponse({"status": why}, 503, {"Retry-After": "1"})

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def metrics(http: Request) -> Response:
        """Counters and gauges for Prometheus; asks for a key where there are any."""
        gate.keys.client(http.headers.get("authorization"))
        return Response(await core.metrics(), media_type=CONTENT_TYPE)

    return app


def _native_shape(exc: VitrifyError) -> dict[str, object]:
    return {"error": {"code": exc.code, "what": exc.what, "fix": exc.fix}}
