"""Which models there are: cards, local folders, the hub's cache, the embedded models. No MLX, and no weights are read.

A card (`models/*.toml`) describes a model that may not be on this machine yet. A folder is a model that is here.
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import msgspec

import models
from duet.errors import ModelNotFound
from duet.settings import Settings
from duet.wire import ReviewLimits
from engine.downloads import Downloads
from engine.presets import PRESETS, preset_for
from engine.types import Role, SamplingParams
from engine.worker_config import ModelOptions, WorkerRole

Struct = TypeVar("Struct")
ROLE_NAMES = (*get_args(Role), "completions", "reviewer")
_ENCODERS = frozenset({"bert", "modernbert", "xlm-roberta", "roberta", "distilbert", "nomic_bert", "gte", "new"})
_SPEECH = frozenset({"qwen3_asr", "whisper"})
_SAMPLING = frozenset(SamplingParams.__struct_fields__) - {"seed", "logit_bias", "logprobs", "top_logprobs"}
RESCAN_SECONDS = 2.0
"""How long a scan of the disk stays valid. A name that is not found causes another scan at once."""


class CardError(Exception):
    """A card of the package is wrong: a bug of ours, found at start."""


@dataclass(frozen=True)
class Card:
    """One model. `path` is its folder when it is here, `repo` where it can be fetched from when it is not.

    `memory_bytes` is the card's estimate, or the size of the weights. `defaults` are sampling parameters for requests that name
    none. `options` are for its worker. `presets` are the roles that each preset gives to this model. It stays loaded for
    `ttl_seconds` without being used; 0: for good; None: as long as the settings say.
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
        bytes_on_disk=weights_size(folder) if here else 0,
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


def classify(folder: Path) -> tuple[Role, ...]:
    """What a Hugging Face folder can do, by its config.json and its name; empty when it is not a model that we can serve."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    if not isinstance(config, dict) or not any(folder.glob("*.safetensors")):
        return ()
    kind = str(config.get("model_type", "")).lower()
    # A snapshot in the hub's cache is named by its commit; the folder two levels above is named by the model.
    name = (folder.parents[1] if folder.parent.name == "snapshots" else folder).name.lower()
    if kind in _SPEECH or "thinker_config" in config:
        return ("asr",)
    sentence = (folder / "modules.json").exists() or (folder / "1_Pooling").is_dir()
    if sentence or kind in _ENCODERS or "embed" in name:
        return ("embedding",)
    if "ocr" in name or "ocr" in kind:
        return ("ocr", "vision")
    return ("chat", "vision") if config.get("vision_config") else ("chat",)


@dataclass(frozen=True)
class _Scan:
    """What a folder held at its `stamp`: the modification times of the folder and of its config.json."""

    stamp: tuple[int, int]
    roles: tuple[Role, ...]
    weight_bytes: int


def _folded(name: str) -> str:
    return name.casefold()


class Catalogue:
    """Every model by name. Folders are scanned again when asked, so a new one needs no restart."""

    def __init__(self, settings: Settings, downloads: Downloads, *, memory_bytes: int | None = None) -> None:
        """`memory_bytes` chooses the preset; by default this machine's."""
        self._settings, self._downloads = settings, downloads
        self._cards = [read_card(path) for path in sorted(models.CARDS.glob("*.toml"))]
        self._embedded = (
            [read_card(path) for path in sorted(models.EMBEDDED.glob("*.toml"))] if settings.embedded else []
        )
        self.preset = settings.engine.preset or preset_for(memory_bytes or physical_memory_bytes())
        """The preset's name: it says which models stand for the roles, and how models share the memory."""
        self._scans: dict[Path, _Scan] = {}
        self._known: list[Card] = []
        self._known_until = 0.0

    def known(self) -> list[Card]:
        """Models on this machine (embedded, local folders, complete snapshots in the hub's cache), then models that can be
        fetched. At most `RESCAN_SECONDS` old."""
        if time.monotonic() >= self._known_until:
            self._known = self._scan()
            self._known_until = time.monotonic() + RESCAN_SECONDS
        return self._known

    def _scan(self) -> list[Card]:
        found: dict[str, Card] = {card.id: card for card in self._embedded if card.roles}
        places = [(folder.name, folder) for root in self._settings.engine.model_dirs for folder in _folders(root)]
        if self._settings.engine.hub:
            places += self._downloads.snapshots()
        scans = {folder: scan for _, folder in places if (scan := self._scan_folder(folder)) is not None}
        self._scans = scans  # folders that are gone are forgotten
        for name, folder in places:
            if folder in scans and scans[folder].roles:
                card = self._local(name, folder, scans[folder])
                found.setdefault(card.id, card)
        names = {_folded(name) for card in found.values() for name in card.names}
        fetchable = self._cards if self._settings.engine.hub else []
        return [*found.values(), *(card for card in fetchable if not names & set(map(_folded, card.names)))]

    def _scan_folder(self, folder: Path) -> _Scan | None:
        """What a folder holds, read again only if the folder or its config.json has changed; None when it has just been
        removed."""
        try:
            stamp = (folder.stat().st_mtime_ns, (folder / "config.json").stat().st_mtime_ns)
            before = self._scans.get(folder)
            return before if before and before.stamp == stamp else _Scan(stamp, classify(folder), weights_size(folder))
        except OSError:
            return None

    def _local(self, name: str, folder: Path, scan: _Scan) -> Card:
        """A folder's card: the package's card of that name or repo if there is one, with the folder filled in.

        The id is then the card's, so it stays the same whether the model is here yet or not.
        """
        wanted = {_folded(name), _folded(folder.name)}
        known = next((card for card in self._cards if wanted & set(map(_folded, card.names))), None)
        base = replace(known, aliases=(*known.aliases, name)) if known else Card(id=name)
        return replace(
            base,
            roles=base.roles or scan.roles,
            path=folder,
            bytes_on_disk=scan.weight_bytes,
            memory_bytes=base.memory_bytes or scan.weight_bytes,
        )

    def resolve(self, name: str) -> Card:
        """The model that an id, an alias, a role or a repo id means. Raises `ModelNotFound`, which lists the models there are."""
        if card := self._find(name):
            return card
        self._known_until = 0.0
        if card := self._find(name):
            return card
        if self._settings.engine.hub and is_repo_id(name):
            return Card(id=name, roles=("embedding",) if "embed" in name.lower() else _roles_by_name(name), repo=name)
        here = ", ".join(card.id for card in self.known() if card.path) or "none is on this machine yet"
        raise ModelNotFound(f"there is no model {name!r} here; there are: {here}", param="model")

    def _find(self, name: str) -> Card | None:
        """By id, else by alias or repo (upper and lower case are the same), else by role."""
        known = self.known()
        exact = next((card for card in known if name == card.id), None)
        named = exact or next((card for card in known if _folded(name) in map(_folded, card.names)), None)
        return named or (self._for_role(name, known) if name in ROLE_NAMES else None)

    def _for_role(self, name: str, known: list[Card]) -> Card | None:
        role = {"completions": "chat"}.get(name, name)
        wished = self._settings.engine.default_chat_model
        if role == "chat" and wished and wished not in ROLE_NAMES:
            return self.resolve(wished)
        able = [card for card in known if role in card.roles or (role == "reviewer" and "chat" in card.roles)]
        preferred = [card for card in able if role in card.presets.get(self.preset, ())]
        present = [card for card in able if card.path]
        embedded = [card for card in present if card.demonstration]
        # With the embedded models nothing is fetched for a role: that mode must work without a network.
        fetchable = [] if self._settings.embedded else preferred
        order = [*embedded, *(card for card in preferred if card.path), *present, *fetchable]
        return next(iter(order), None)


def is_repo_id(name: str) -> bool:
    """`owner/name` as the hub spells it."""
    owner, slash, repo = name.partition("/")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    return bool(slash and owner and repo) and set(owner + repo) <= allowed and ".." not in name and len(name) <= 96


def physical_memory_bytes() -> int:
    """RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _roles_by_name(name: str) -> tuple[Role, ...]:
    """A guess before anything is downloaded. `classify` decides afterwards."""
    lowered = name.lower()
    return ("asr",) if "asr" in lowered or "whisper" in lowered else ("chat",)


def _folders(root: Path) -> Iterator[Path]:
    """Model folders one and two levels below `root`: plain folders, and owner/name as LM Studio stores them."""
    for pattern in ("*/config.json", "*/*/config.json"):
        yield from sorted(config.parent for config in root.glob(pattern))


def weights_size(folder: Path) -> int:
    """Bytes of a folder's weight files."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))
