"""`duet config`: every setting, its value and where it comes from, as lines of TOML. No setting is a secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from duet.settings import Settings, origins


def lines(settings: Settings) -> list[str]:
    """One line for each setting, `name = value  # origin`; one without a value is a comment. The first line names the home."""
    came_from = origins()
    found = [f"# DUET_HOME = {settings.home}"]
    for name, value in _settings(settings, ""):
        inside = (origin for key, origin in came_from.items() if key.startswith(f"{name}."))
        origin = came_from.get(name) or next(inside, "default")
        found.append(f"# {name} is not set  # {origin}" if value is None else f"{name} = {_toml(value)}  # {origin}")
    return found


def _settings(section: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from _settings(value, f"{prefix}{name}.")
        elif name != "home":
            yield f"{prefix}{name}", value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(key)} = {_toml(item)}' for key, item in value.items())}}}"
    if isinstance(value, bool):
        return str(value).lower()
    # A JSON string is a TOML string; a path is a string.
    return str(value) if isinstance(value, int | float) else json.dumps(str(value), ensure_ascii=False)
