"""`GET /`: what this service is and where to look. `GET /docs`: its OpenAPI description as one page without scripts or
addresses, so that it works offline.

FastAPI's own page loads a script from a content network, which thus learns when somebody reads this page.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
h2 { font: 600 1rem ui-monospace, monospace; border-top: 1px solid #8884; padding-top: 1rem; margin-top: 2rem; }
h2 b { color: #0a7; display: inline-block; min-width: 4rem; }
table { border-collapse: collapse; width: 100%; } td { border-top: 1px solid #8882; padding: .2rem .6rem .2rem 0; }
td:first-child, td:nth-child(2) { font-family: ui-monospace, monospace; font-size: .9em; vertical-align: top; }
@media (prefers-color-scheme: dark) { body { background: #111; color: #ddd; } }
"""
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"}


def install_docs(app: FastAPI) -> None:
    """Serve `/` and `/docs`. `app` is made with `docs_url=None, redoc_url=None`; `/openapi.json` stays FastAPI's."""

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        links = {
            "docs": "/docs",
            "openapi": "/openapi.json",
            "models": "/v1/models",
            "health": "/health",
            "ready": "/ready",
        }
        return {"name": app.title, "version": app.version, **links}

    @app.get("/docs", include_in_schema=False, response_class=HTMLResponse)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()), headers=_HEADERS)


def page(api: dict[str, Any]) -> str:
    """The whole description as HTML; everything in it is escaped."""
    about = api["info"]
    title = f"{about['title']} {about['version']}"
    body = "".join(_operations(api))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>{escape(about.get('description', ''))} Machine-readable: "
        f'<a href="openapi.json">openapi.json</a>.</p>{body}</html>'
    )


def _operations(api: dict[str, Any]) -> Iterator[str]:
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            text = operation.get("description") or operation.get("summary", "")
            yield f"<h2><b>{escape(method.upper())}</b>{escape(path)}</h2><p>{escape(text)}</p>"
            if rows := "".join(_row(*field) for field in _fields(api, operation)):
                yield f"<table>{rows}</table>"


def _row(name: str, kind: str, text: str) -> str:
    return f"<tr><td>{escape(name)}</td><td>{escape(kind)}</td><td>{escape(text)}</td></tr>"


def _fields(api: dict[str, Any], operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, type, description) of every parameter and of every field of the body."""
    for parameter in operation.get("parameters", ()):
        yield parameter["name"], _kind(parameter.get("schema", {})), parameter.get("description", "")
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = _resolved(api, content.get("schema", {}))
        required = schema.get("required", ())
        for name, field in schema.get("properties", {}).items():
            kind = _kind(field) + (", required" if name in required else "")
            yield name, kind, field.get("description", "")


def _resolved(api: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = api["components"]["schemas"][name] if name else schema
    return found


def _kind(schema: dict[str, Any]) -> str:
    """A schema's type in a few words: `integer 1..16`, `list of string`, `text | json`."""
    if options := schema.get("anyOf"):
        return " | ".join(_kind(option) for option in options if option.get("type") != "null")
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    bounds = ["" if bound is None else f"{bound:.15g}" for bound in (low, high)]
    return f"{kind} {bounds[0]}..{bounds[1]}" if any(bounds) else kind
