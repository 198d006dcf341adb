"""Which models there are: embedded, in local folders, in the hub's cache, and those that can be fetched. No MLX."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import models
from duet.errors import Conflict, ModelNotFound
from duet.settings import Settings
from engine.cards import ROLE_NAMES, Card, read_card
from engine.downloads import Downloads
from engine.folders.discovery import Place, Stamp, places, stamp_of
from engine.folders.inspection import Inspection, inspect
from engine.folders.reading import Problem, entries
from engine.naming import bearers_of, folded, is_repo_id, meant, name_places
from engine.presets import preset_for
from engine.types import Role

logger = logging.getLogger(__name__)

RESCAN_SECONDS: Final = 2.0
"""How long a scan of the disk stays valid. A name that is not found causes another scan at once."""
PATIENCE_SECONDS: Final = 5.0
"""A request waits this long for a scan, and then goes by the one before. A disk may be asleep, or far away."""
FIRST_LOOK_SECONDS: Final = 60.0
"""A request waits this long for a name while the folders are looked at for the first time."""
MOST_FOLDERS: Final = 10_000
"""Folders that are looked at."""


class Catalogue:
    """Every model by name. Folders are scanned in a thread when somebody asks, so a new one needs no restart. A folder is
    inspected once, and again when one of its files has changed."""

    def __init__(self, settings: Settings, downloads: Downloads, *, memory_bytes: int | None = None) -> None:
        """`memory_bytes` chooses the preset; by default this machine's."""
        self._settings, self._downloads = settings, downloads
        self._cards = [read_card(path) for path in sorted(models.CARDS.glob("*.toml"))]
        self._embedded = (
            [read_card(path) for path in sorted(models.EMBEDDED.glob("*.toml"))] if settings.embedded else []
        )
        self.preset = settings.engine.preset or preset_for(memory_bytes or physical_memory_bytes())
        """The preset's name: it says which models stand for the roles, and how models share the memory."""
        self._inspections: dict[Path, tuple[Stamp, Inspection]] = {}
        self._said: dict[str, str] = {}
        self._known: list[Card] | None = None
        self._known_until = 0.0
        self._scanning: asyncio.Task[None] | None = None

    # What there is ---------------------------------------------------------------------------------------------------

    def known(self) -> list[Card]:
        """Models on this machine (embedded, local folders, complete snapshots in the hub's cache), then models that can be
        fetched, as the last scan found them."""
        if self._known is None and self._scanning is None:
            self.scan()
        return self._known or []

    async def refresh(self, *, at_once: bool = False) -> None:
        """Scan again if the last scan is too old, or `at_once`. Callers share a scan."""
        if self._scanning is not None and at_once:  # it may have passed the folder that is asked for
            await asyncio.wait([self._scanning], timeout=PATIENCE_SECONDS)
        if self._scanning is None and (at_once or time.monotonic() >= self._known_until):
            self._scanning = asyncio.create_task(asyncio.to_thread(self.scan), name="scan")
            self._scanning.add_done_callback(self._note_scan)
        if self._scanning is not None:
            await asyncio.wait([self._scanning], timeout=PATIENCE_SECONDS)

    def _note_scan(self, task: asyncio.Task[None]) -> None:
        self._scanning = None
        if not task.cancelled() and (error := task.exception()):
            logger.error("the models could not be scanned", exc_info=error, extra={"action": "scan_failed"})

    def scan(self) -> None:
        """Look at all folders. One thread at a time. The first look shows every second what it has found: thousands of folders
        take a minute."""
        local = self._local_places()
        hub = self._hub_places() if self._settings.engine.hub else []
        inspections: dict[Path, tuple[Stamp, Inspection]] = {}  # folders that are gone are forgotten
        shown_at = time.monotonic()
        for place in (*local, *hub):
            inspections[place.folder] = (place.stamp, self._inspected(place))
            if self._looks_first and time.monotonic() - shown_at > 1.0:
                self._inspections = dict(inspections)
                self._show(
                    [it for it in local if it.folder in inspections], [it for it in hub if it.folder in inspections]
                )
                shown_at = time.monotonic()
        self._inspections = inspections
        self._show(local, hub)
        self._known_until = time.monotonic() + RESCAN_SECONDS

    @property
    def _looks_first(self) -> bool:
        """Whether no look at the folders is complete yet."""
        return self._known_until == 0.0

    def _show(self, local: list[Place], hub: list[Place]) -> None:
        """Let the models of these places be known, which are inspected."""
        found: dict[str, Card] = {card.id: card for card in self._embedded if card.roles}
        cards = [self._own_card(place) for place in local]
        reserved = {folded(name) for name in (*ROLE_NAMES, *found)}
        reserved |= {folded(name) for card in self._cards for name in card.names}
        unnamed = [place for place, card in zip(local, cards, strict=True) if card is None]
        names = name_places(unnamed, reserved)
        for place, card in [*zip(local, cards, strict=True), *((place, self._own_card(place)) for place in hub)]:
            filled = self._filled(place, card or _bare(*names.get(place, (place.name,))))
            if filled.id not in found or (found[filled.id].problem and not filled.problem):
                found[filled.id] = filled
        here = {folded(name) for card in found.values() for name in card.names}
        fetchable = self._cards if self._settings.engine.hub else []
        usable = [card for card in found.values() if not card.problem]
        unusable = [card for card in found.values() if card.problem]
        absent = [card for card in fetchable if not here & set(map(folded, card.names))]
        self._known = [*usable, *unusable, *absent]

    def _local_places(self) -> list[Place]:
        found: list[Place] = []
        for root in self._settings.engine.model_dirs:
            try:
                found += places(root)
                self._say(str(root), None)
            except (OSError, Problem) as error:
                cause = error.strerror if isinstance(error, OSError) else str(error)
                self._say(str(root), f"engine.model_dirs: {root} cannot be read: {cause}")
        if len(found) > MOST_FOLDERS:
            self._say("", f"only the first {MOST_FOLDERS} of {len(found)} model folders are used")
        return list({place.folder: place for place in found[:MOST_FOLDERS]}.values())

    def _hub_places(self) -> list[Place]:
        found = []
        for repo, snapshot in self._downloads.snapshots():
            try:
                found.append(Place(snapshot, repo, snapshot, stamp_of(entries(snapshot))))
            except (OSError, Problem) as error:  # it has just been removed, or is no model
                self._say(repo, f"{repo} in the hub's cache cannot be read: {error}")
        return found

    def _inspected(self, place: Place) -> Inspection:
        """What a folder holds, read again only if a file in it has changed."""
        stamp, before = self._inspections.get(place.folder, ((), None))
        if before is not None and stamp == place.stamp:
            return before
        found = Inspection(problem=place.problem) if place.problem else inspect(place.folder, place.name)
        left_out = f"not used: {', '.join(found.left_out[:5])}" if found.left_out else None
        self._say(str(place.folder), found.problem, left_out)
        return found

    def _say(self, subject: str, problem: str | None, note: str | None = None) -> None:
        """Log what is wrong once, and again when it is something else."""
        said = problem or note
        if said is None:
            self._said.pop(subject, None)
        elif self._said.get(subject) != said:
            self._said[subject] = said
            level = logging.WARNING if problem else logging.INFO
            action = "folder_unusable" if problem else "files_left_out"
            logger.log(level, "%s: %s", subject, said, extra={"action": action})

    def _own_card(self, place: Place) -> Card | None:
        """The package's card of a folder, by its repo, or by its name if that names no owner. None for a folder that does
        something else than the card says."""
        card = next((card for card in self._cards if folded(place.name) in map(folded, card.names)), None)
        if card is None:
            return None
        roles = self._inspections[place.folder][1].roles
        same = not roles or not card.roles or replace(card, roles=roles).worker_role == card.worker_role
        return replace(card, aliases=(*card.aliases, place.name)) if same else None

    def _filled(self, place: Place, card: Card) -> Card:
        """A card with its folder. Its id stays the same whether the model is here yet or not."""
        found = self._inspections[place.folder][1]
        return replace(
            card,
            roles=() if found.problem else _roles(card.roles, found.roles),
            path=place.folder,
            bytes_on_disk=found.weight_bytes,
            memory_bytes=card.memory_bytes or found.weight_bytes,
            problem=found.problem,
        )

    # Names -----------------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Card:
        """As `resolve`, after a look at the disk if the last one was long ago or did not find the name."""
        await self.refresh()
        waited_until = time.monotonic() + FIRST_LOOK_SECONDS
        while (card := self._here(name)) is None and self._looks_first and self._scanning is not None:
            if time.monotonic() > waited_until:
                break
            await asyncio.wait([self._scanning], timeout=0.5)
        if card is not None:
            return card
        await self.refresh(at_once=True)
        return self.resolve(name)

    def _here(self, name: str) -> Card | None:
        """The model on this machine that a name means, if there is one."""
        try:
            card = self.resolve(name)
        except ModelNotFound:
            return None
        return card if card.path is not None else None

    def resolve(self, name: str) -> Card:
        """The model that an id, an alias, a role or a repo id means. Raises `ModelNotFound`, which lists the models there are,
        and `Conflict` for a name that several have."""
        if card := self._find(name):
            return card
        if self._settings.engine.hub and is_repo_id(name):
            return Card(id=name, roles=("embedding",) if "embed" in name.lower() else _roles_by_name(name), repo=name)
        here = ", ".join(card.id for card in self.known() if card.path and not card.problem)
        raise ModelNotFound(
            f"there is no model {name!r} here; there are: {here or 'none is on this machine yet'}", param="model"
        )

    def _find(self, name: str) -> Card | None:
        """By id, else by alias or repo (upper and lower case are the same), else by role, else by the last part of an id."""
        by_id = {card.id: card for card in self.known()}
        ids = meant(name, {model: card.names for model, card in by_id.items()})
        if not ids and name in ROLE_NAMES:
            return self._for_role(name)
        ids = ids or bearers_of(name, (card.id for card in by_id.values() if card.path))
        if len(ids) > 1:
            raise Conflict(f"{name!r} is the name of several models here; say which: {', '.join(ids)}", param="model")
        return by_id[ids[0]] if ids else None

    def _for_role(self, name: str) -> Card | None:
        wished = self._settings.engine.default_chat_model
        if name in ("chat", "completions") and wished and wished not in ROLE_NAMES:
            return self.resolve(wished)
        chats = {"completions": "chat", "reviewer": "chat"}.get(name, name)
        known = self.known()
        able = [card for card in known if chats in card.roles] + (
            [card for card in known if "completions" in card.roles] if name == "completions" else []
        )
        role = "chat" if name == "completions" else name
        preferred = [card for card in able if role in card.presets.get(self.preset, ())]
        present = [card for card in able if card.path]
        embedded = [card for card in present if card.demonstration]
        # With the embedded models nothing is fetched for a role: that mode must work without a network.
        fetchable = [] if self._settings.embedded else preferred
        order = [*embedded, *(card for card in preferred if card.path), *present, *fetchable]
        return next(iter(order), None)


def _bare(*names: str) -> Card:
    return Card(id=names[0], aliases=names[1:])


def _roles(by_card: tuple[Role, ...], found: tuple[Role, ...]) -> tuple[Role, ...]:
    """A card may know more of a model than its folder says, but it cannot make it see or chat."""
    return tuple(role for role in by_card if role in found or role == "ocr") or found


def physical_memory_bytes() -> int:
    """RAM of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _roles_by_name(name: str) -> tuple[Role, ...]:
    """A guess before anything is downloaded. The folder's inspection decides afterwards."""
    lowered = name.lower()
    return ("asr",) if "asr" in lowered or "whisper" in lowered else ("chat",)
