"""Which models there are: cards, local folders, the hub's cache, the embedded ones. No MLX, no weights read.

A card (`models/*.toml`) knows a model that people run before it is on this machine; a folder is a model that is.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import models
from duet.errors import ModelNotFound
from duet.settings import Settings
from engine.downloads import Downloads
from engine.types import Role

WorkerRole = Literal["chat", "embedding", "asr"]
ROLE_NAMES = (*get_args(Role), "completions", "reviewer")
_ENCODERS = frozenset({"bert", "modernbert", "xlm-roberta", "roberta", "distilbert", "nomic_bert", "gte", "new"})
_SPEECH = frozenset({"qwen3_asr", "whisper"})


class CardError(Exception):
    """A card of the package is wrong: a fault of ours, found at start."""


@dataclass(frozen=True)
class Card:
    """One model. `path` is its folder when it is here, `repo` where it can be fetched from when it is not.

    `memory_bytes` is an estimate from the card or the size of the weights. `defaults` are sampling parameters for
    requests that name none. `preferred` roles are those that a preset gives to this model.
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
    review_window_segments: int | None = None
    review_prompt: str | None = None
    presets: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def worker_role(self) -> WorkerRole:
        return "asr" if "asr" in self.roles else "embedding" if "embedding" in self.roles else "chat"

    @property
    def names(self) -> frozenset[str]:
        return frozenset({self.id, *self.aliases, *([self.repo] if self.repo else [])})


def read_card(path: Path) -> Card:
    """A card from its TOML file. Raises `CardError` naming file and key."""
    known = {
        "id", "aliases", "roles", "repo", "revision", "memory_bytes", "context", "demonstration", "description",
        "sampling", "review", "presets", "ocr",
    }  # fmt: skip
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise CardError(f"{path}: {error}") from error
    if unknown := set(values) - known:
        raise CardError(f"{path}: unknown key {', '.join(sorted(unknown))}")
    if bad := set(values.get("roles", ())) - set(get_args(Role)):
        raise CardError(f"{path}: unknown role {', '.join(sorted(bad))}")
    review = values.get("review", {})
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
        bytes_on_disk=_weights_size(folder) if here else 0,
        context=values.get("context"),
        demonstration=values.get("demonstration", False),
        description=values.get("description", ""),
        defaults=dict(values.get("sampling", {})),
        review_window_segments=review.get("window_segments"),
        review_prompt=review.get("prompt"),
        presets={name: tuple(roles) for name, roles in values.get("presets", {}).items()},
    )


def classify(folder: Path) -> tuple[Role, ...]:
    """What a Hugging Face folder can do, from its config.json and its name; empty when it is no model of ours."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    if not isinstance(config, dict) or not any(folder.glob("*.safetensors")):
        return ()
    kind = str(config.get("model_type", "")).lower()
    name = folder.name.lower()
    if kind in _SPEECH or "thinker_config" in config:
        return ("asr",)
    sentence = (folder / "modules.json").exists() or (folder / "1_Pooling").is_dir()
    if sentence or kind in _ENCODERS or "embed" in name:
        return ("embedding",)
    if "ocr" in name or "ocr" in kind:
        return ("ocr", "vision")
    return ("chat", "vision") if config.get("vision_config") else ("chat",)


class Catalogue:
    """Every model by name. Folders are looked at again when asked, so that a new one needs no restart."""

    def __init__(self, settings: Settings, downloads: Downloads) -> None:
        self._settings, self._downloads = settings, downloads
        self._cards = [read_card(path) for path in sorted(models.CARDS.glob("*.toml"))]
        self._embedded = (
            [read_card(path) for path in sorted(models.EMBEDDED.glob("*.toml"))] if settings.embedded else []
        )
        self._preset = preset_for(physical_memory_bytes())

    def present(self) -> list[Card]:
        """Models on this machine: embedded, local folders, complete snapshots of the hub's cache."""
        found: dict[str, Card] = {card.id: card for card in self._embedded if card.roles}
        for root in self._settings.engine.model_dirs:
            for folder in _folders(root):
                if roles := classify(folder):
                    found.setdefault(folder.name, self._local(folder.name, folder, roles))
        if self._settings.engine.hub:
            for repo, folder in self._downloads.snapshots():
                if roles := classify(folder):
                    found.setdefault(repo, self._local(repo, folder, roles))
        return list(found.values())

    def _local(self, name: str, folder: Path, roles: tuple[Role, ...]) -> Card:
        """A folder's card: the package's card of that name or repo if it has one, with the folder filled in."""
        size = _weights_size(folder)
        known = next((card for card in self._cards if name in card.names or folder.name in card.names), None)
        base = replace(known, id=name, aliases=tuple(known.names - {name})) if known else Card(id=name)
        return replace(
            base,
            roles=base.roles or roles,
            path=folder,
            bytes_on_disk=size,
            memory_bytes=base.memory_bytes or size,
        )

    def known(self) -> list[Card]:
        """Present models, then cards of models that could be fetched."""
        present = self.present()
        names = {name for card in present for name in card.names}
        absent = [card for card in self._cards if not card.names & names] if self._settings.engine.hub else []
        return [*present, *absent]

    def resolve(self, name: str) -> Card:
        """The model that an id, an alias, a role or a repo id means. Raises `ModelNotFound` listing what there is."""
        known = self.known()
        for card in known:
            if name == card.id:
                return card
        for card in known:
            if name in card.names:
                return card
        if name in ROLE_NAMES and (fitting := self._for_role(name, known)):
            return fitting
        if self._settings.engine.hub and is_repo_id(name):
            return Card(id=name, roles=("embedding",) if "embed" in name.lower() else _roles_by_name(name), repo=name)
        here = ", ".join(card.id for card in known if card.path) or "none is on this machine yet"
        raise ModelNotFound(f"there is no model {name!r} here; there are: {here}", param="model")

    def _for_role(self, name: str, known: list[Card]) -> Card | None:
        role = {"completions": "chat"}.get(name, name)
        if role == "chat" and (wished := self._settings.engine.default_chat_model):
            return self.resolve(wished)
        able = [card for card in known if role in card.roles or (role == "reviewer" and "chat" in card.roles)]
        preferred = [card for card in able if role in card.presets.get(self._preset, ())]
        present = [card for card in able if card.path]
        embedded = [card for card in present if card.demonstration]
        order = [*embedded, *(card for card in preferred if card.path), *present, *preferred]
        return next(iter(order), None)


def is_repo_id(name: str) -> bool:
    """`owner/name` as the hub spells it."""
    owner, slash, repo = name.partition("/")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    return bool(slash and owner and repo) and set(owner + repo) <= allowed and ".." not in name and len(name) <= 96


def preset_for(memory_bytes: int) -> str:
    """The preset by physical memory: `16gb`, `32gb` or `64gb`."""
    gigabytes = memory_bytes / (1 << 30)
    return "64gb" if gigabytes >= 60 else "32gb" if gigabytes >= 30 else "16gb"


def physical_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _roles_by_name(name: str) -> tuple[Role, ...]:
    """A guess before anything is downloaded; `classify` decides afterwards."""
    lowered = name.lower()
    return ("asr",) if "asr" in lowered or "whisper" in lowered else ("chat",)


def _folders(root: Path) -> Iterator[Path]:
    """Model folders one and two levels below `root`, as LM Studio (owner/name) and plain folders lie."""
    for pattern in ("*/config.json", "*/*/config.json"):
        yield from sorted(config.parent for config in root.glob(pattern))


def _weights_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
