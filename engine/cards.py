"""What is known of a model: a card (`models/*.toml`) describes one that may not be on this machine yet."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

from duet.wire import ReviewLimits
from engine.presets import PRESETS
from engine.types import Role, SamplingParams
from engine.worker_config import ModelOptions, WorkerRole

Struct = TypeVar("Struct")
ROLE_NAMES = (*get_args(Role), "reviewer")
_SAMPLING = frozenset(SamplingParams.__struct_fields__) - {"seed", "logit_bias", "logprobs", "top_logprobs"}


class CardError(Exception):
    """A card of the package is wrong: a bug of ours, found at start."""


@dataclass(frozen=True)
class Card:
    """One model. `path` is its folder when it is here, `repo` where it can be fetched from when it is not.

    `memory_bytes` is the card's estimate, or the size of the weights. `defaults` are sampling parameters for requests that name
    none. `options` are for its worker. `presets` are the roles that each preset gives to this model. It stays loaded for
    `ttl_seconds` without being used; 0: for good; None: as long as the settings say. `problem`: why its folder cannot be used.
    """

    id: str
    aliases: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ()
    path: Path | None = None
    repo: str | None = None
    revision: str | None = None
    memory_bytes: int = 0
    bytes_on_disk: int = 0
    context: int | None = None
    demonstration: bool = False
    description: str = ""
    defaults: dict[str, float] = field(default_factory=dict)
    review: ReviewLimits | None = None
    presets: dict[str, tuple[str, ...]] = field(default_factory=dict)
    ocr_prompt: str | None = None
    stop_strings: tuple[str, ...] = ()
    max_tokens: int | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    ttl_seconds: float | None = None
    problem: str | None = None

    @property
    def worker_role(self) -> WorkerRole:
        return "asr" if "asr" in self.roles else "embedding" if "embedding" in self.roles else "chat"

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.id, *self.aliases, *([self.repo] if self.repo else [])})


KNOWN_KEYS = frozenset({
    "id", "aliases", "roles", "repo", "revision", "memory_bytes", "context", "demonstration", "description",
    "sampling", "review", "presets", "ocr", "ttl_seconds", *ModelOptions.__struct_fields__,
})  # fmt: skip


def read_card(path: Path) -> Card:
    """A card from its TOML file. Raises `CardError` naming file and key."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
    _check(path, values)
    ocr = values.get("ocr", {})
    folder = path.parent / values["id"]
    here = folder.is_dir()
    return Card(
        id=values["id"],
        aliases=tuple(values.get("aliases", ())),
        roles=tuple(values.get("roles", ())),
        path=folder if here else None,
        repo=values.get("repo"),
        revision=values.get("revision"),
        memory_bytes=values.get("memory_bytes", 0),
        bytes_on_disk=sum(file.stat().st_size for file in folder.glob("*.safetensors")) if here else 0,
        context=values.get("context"),
        demonstration=values.get("demonstration", False),
        description=values.get("description", ""),
        defaults=dict(values.get("sampling", {})),
        review=_struct(path, values["review"], ReviewLimits, "review: ") if "review" in values else None,
        presets={name: tuple(roles) for name, roles in values.get("presets", {}).items()},
        ocr_prompt=ocr.get("prompt"),
        stop_strings=tuple(ocr.get("stops", ())),
        max_tokens=ocr.get("max_tokens"),
        options=_struct(
            path, {name: values[name] for name in ModelOptions.__struct_fields__ if name in values}, ModelOptions
        ),
        ttl_seconds=values.get("ttl_seconds"),
    )


def _check(path: Path, values: dict[str, Any]) -> None:
    """Raise `CardError` for a key or a name that no card has, and for a wrong TTL."""
    if unknown := set(values) - KNOWN_KEYS:
        raise CardError(f"{path}: unknown key {', '.join(sorted(unknown))}")
    for table, allowed in (
        (values.get("roles", ()), frozenset(get_args(Role))),
        (values.get("sampling", {}), _SAMPLING),
        (values.get("ocr", {}), frozenset({"prompt", "stops", "max_tokens"})),
        (values.get("presets", {}), frozenset(PRESETS)),
    ):
        if bad := set(table) - allowed:
            raise CardError(f"{path}: unknown {', '.join(sorted(bad))}; known: {', '.join(sorted(allowed))}")
    ttl = values.get("ttl_seconds")
    if ttl is not None and not (isinstance(ttl, int | float) and ttl >= 0):
        raise CardError(f"{path}: ttl_seconds is a number of seconds, 0 for never")


def _struct(path: Path, values: Any, kind: type[Struct], where: str = "") -> Struct:
    """A part of a card as a struct of its own. `where` begins the message. Raises `CardError`."""
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise CardError(f"{path}: {where}{error}") from error
