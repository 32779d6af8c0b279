"""What stands before every request: headers for browsers, and no requests that a foreign page makes them send."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'"),
)
_LOCAL = ("localhost", "127.0.0.1", "::1")
_REFUSED = b'{"error": {"code": "forbidden", "what": "%s", "fix": "%s"}}'


class Safety:
    """Sets security headers, and refuses (403) what a page of another site sends from a user's browser.

    Without keys a server on 127.0.0.1 trusts whoever reaches it, and any page in the user's browser can. So an Origin
    must be the server's own or one of `origins`, and the name in Host one of this machine's (a foreign name may lead
    to 127.0.0.1). As plain ASGI: it must not stand between a request and its disconnection.

    Args:
        local: whether the server listens for this machine alone, so that names of others are refused.
    """

    def __init__(self, app: Any, *, origins: Collection[str] = (), local: bool = True) -> None:
        self._app, self._origins = app, set(origins)
        self._names = {*_LOCAL, *(_name(origin) for origin in origins)} if local else set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refused = self._refused(dict(scope["headers"]))
        if refused is not None and scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 4403, "reason": refused[0]})
            return
        if refused is not None:
            body = _REFUSED % tuple(word.encode() for word in refused)
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                said = {name.lower() for name, _ in message["headers"]}
                message["headers"] += [(name, value) for name, value in _HEADERS if name not in said]
            await send(message)

        await self._app(scope, receive, sending if scope["type"] == "http" else send)

    def _refused(self, headers: dict[bytes, bytes]) -> tuple[str, str] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._names and host and _name(f"//{host}") not in self._names:
            return "The Host header names another machine.", "Call it by 127.0.0.1 or localhost, or set cors."
        origin = headers.get(b"origin", b"").decode("latin-1")
        own = origin in (f"http://{host}", f"https://{host}")
        if origin and not own and not self._origins & {origin, "*"}:
            return "A page of another site may not call this server.", "Name its origin in the setting cors."
        return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None
