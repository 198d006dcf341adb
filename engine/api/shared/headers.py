"""Headers of an answer, for what OpenAI's bodies have no place for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from engine.types import Accepted, CacheNote, ModelInfo

MAX_IGNORED_NAMES, MAX_NAME_CHARACTERS = 32, 64


def answer_headers(model: ModelInfo, ignored: Iterable[str] = ()) -> dict[str, str]:
    """`X-Duet-Ignored: a, b` names fields that had no effect. `X-Duet-Demonstration: true` says that a demonstration model
    answers."""
    headers = {"X-Duet-Demonstration": "true"} if model.demonstration else {}
    names = [name if name.isascii() and name.isprintable() else ascii(name) for name in ignored][:MAX_IGNORED_NAMES]
    return headers | ({"X-Duet-Ignored": ", ".join(name[:MAX_NAME_CHARACTERS] for name in names)} if names else {})


def accepted_headers(choices: Sequence[Accepted], known: Mapping[str, str]) -> dict[str, str]:
    """What the worker says of the choices that it takes, beside the headers that are `known` of the call.
    `X-Duet-Max-Tokens: 512`: the context has no room for a longer answer. It is the least of all choices."""
    if not choices:
        return {}
    headers = _cache_header(choices[0].cache)
    if bounds := [one.max_tokens for one in choices if one.max_tokens is not None]:
        headers["X-Duet-Max-Tokens"] = str(min(bounds))
    if ignored := [*filter(None, [known.get("X-Duet-Ignored")]), *choices[0].ignored]:
        headers["X-Duet-Ignored"] = ", ".join(ignored)
    return headers


def _cache_header(note: CacheNote) -> dict[str, str]:
    """`X-Duet-Cache: tokens=606; tier=ram; miss=diverged_at(606, user)`: what the lookup found of the prompt, and why it was
    not more. `usage` has what was really restored, which may be more when another request began with the same prompt
    meanwhile."""
    parts = [f"tokens={note.tokens}"]
    parts += [f"tier={note.tier}"] if note.tier else []
    parts += [f"miss={note.reason}"] if note.reason else []
    return {"X-Duet-Cache": "; ".join(parts)}
