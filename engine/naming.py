"""Which name is whose. A model in `owner/name` is both to a client; the short name works as long as it is one model's."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from engine.folders.discovery import Place

HUB_NAME: Final = 96
"""The longest name of a repo on the hub."""


def folded(name: str) -> str:
    """Names that differ in case or in the composition of their letters are one name: some disks cannot tell them apart."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def shown(name: str) -> str:
    """A name of the file system as text: bytes that are no UTF-8 become U+FFFD."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def short(name: str) -> str:
    return name.rpartition("/")[2]


def name_places(found: Sequence[Place], reserved: Collection[str]) -> dict[Place, tuple[str, ...]]:
    """The names of each place, its id first. Of places with the same name the first has it, and the others have longer ones.
    `reserved` are names (folded) that mean something else, such as roles: no id is one."""
    bearers = Counter(folded(short(shown(place.name))) for place in found)
    taken, names = set[str](), dict[Place, tuple[str, ...]]()
    for place in found:
        whole = shown(place.name)
        parts = place.folder.parts
        wished = [short(whole)] if bearers[folded(short(whole))] == 1 else []
        wished += [whole, *(shown("/".join(parts[-count:])) for count in range(2, len(parts) + 1))]
        free = [name for name in wished if name not in taken and folded(name) not in reserved]
        names[place] = (free[0], whole) if whole in free[1:] else (free[0],)
        taken.update(names[place])
    return names


def meant(name: str, names: Mapping[str, Iterable[str]]) -> list[str]:
    """The ids that `name` may mean, of models by id with all their names: the one with exactly that name, else those whose names
    differ only in case or composition."""
    exact = [model for model, own in names.items() if name == model] or [
        model for model, own in names.items() if name in own
    ]
    return exact or [model for model, own in names.items() if any(folded(name) == folded(one) for one in (model, *own))]


def bearers_of(name: str, ids: Iterable[str]) -> list[str]:
    """The ids in `owner/name` whose last part a name is."""
    return [model for model in ids if "/" in model and folded(short(model)) == folded(name)]


def is_repo_id(name: str) -> bool:
    """`owner/name` as the hub spells it."""
    owner, slash, repo = name.partition("/")
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
    return (
        bool(slash and owner and repo) and set(owner + repo) <= allowed and ".." not in name and len(name) <= HUB_NAME
    )
