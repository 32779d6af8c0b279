"""/docs: the API as one page, made of the server's own OpenAPI description; no scripts, nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse

Json = Mapping[str, Any]
_METHODS = ("get", "post", "put", "patch", "delete")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>vitrify: the API</title>
<link rel="icon" href="page/icon.svg" type="image/svg+xml"><link rel="stylesheet" href="page/reference.css"></head>
<body><main><h1>The API</h1>
<p>Each protocol below is a view of the same jobs. Where the server has keys, every request carries
<code>Authorization: Bearer KEY</code> (or Basic, with the key as password).
The same description for machines: <a href="openapi.json">openapi.json</a>. The <a href="./">page</a>.</p>
<nav>{contents}</nav>
{sections}
</main></body></html>"""


def router(app: FastAPI) -> APIRouter:
    """/docs of this application."""
    routes = APIRouter(include_in_schema=False)

    @cache
    def page() -> str:
        return reference(app.openapi())

    @routes.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(page())

    return routes


def reference(openapi: Json) -> str:
    """The page of an OpenAPI description."""
    groups: dict[str, list[str]] = {}
    for path, methods in openapi["paths"].items():
        for method in _METHODS:
            if method in methods:
                one = methods[method]
                groups.setdefault((one.get("tags") or ["other"])[0], []).append(_operation(openapi, method, path, one))
    contents = " ".join(f'<a href="#{_id(name)}">{escape(name)}</a>' for name in groups)
    sections = "\n".join(f'<h2 id="{_id(name)}">{escape(name)}</h2>{"".join(found)}' for name, found in groups.items())
    return _PAGE.format(contents=contents, sections=sections)


def _operation(openapi: Json, method: str, path: str, one: Json) -> str:
    said = escape(one.get("description") or one.get("summary") or "")
    tables = [_table("", [_row(g["name"], g["schema"], f"In the {g['in']}", g) for g in one.get("parameters", ())])]
    for schema in _bodies(openapi, one):
        needed = schema.get("required", ())
        fields = schema.get("properties", {}).items()
        rows = [_row(name, field, "", {"required": name in needed, **field}) for name, field in fields]
        tables.append(_table(schema.get("description", "The body."), rows))
    return (
        f"<section><h3><b>{method.upper()}</b> <code>{escape(path)}</code></h3><p>{said}</p>{''.join(tables)}</section>"
    )


def _table(caption: str, rows: list[str]) -> str:
    if not rows:
        return ""
    head = "<tr><th>field<th>type<th>default<th></tr>"
    return f"<table><caption>{escape(caption)}</caption>{head}{''.join(rows)}</table>"


def _bodies(openapi: Json, one: Json) -> list[Json]:
    """The schemas of the JSON bodies that it takes."""
    content = one.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    found = []
    for given in schema.get("oneOf") or schema.get("anyOf") or [schema]:
        name = given.get("$ref", "").rpartition("/")[2]
        everywhere = {**openapi.get("components", {}).get("schemas", {}), **schema.get("$defs", {})}
        found.append(everywhere.get(name, given))
    return found


def _row(name: str, schema: Json, where: str, more: Json) -> str:
    default = "needed" if more.get("required") else escape(str(schema.get("default", "")))
    said = " ".join(part.rstrip(".") + "." for part in (more.get("description"), _bounds(schema), where) if part)
    return f"<tr><td><code>{escape(name)}</code><td>{escape(_type(schema))}<td>{default}<td>{escape(said)}</tr>"


def _type(schema: Json) -> str:
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(one) for one in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2] or "any")


def _bounds(schema: Json) -> str:
    words = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    for one in [schema, *schema.get("anyOf", ())]:
        said = " ".join(f"{word} {one[key]}" for key, word in words if key in one)
        if said:
            return said[0].upper() + said[1:]
    return ""


def _id(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
