"""A conversation as a chat template takes it.

Templates have rules of their own: one system message, at the beginning; user and assistant in turns; no conversation without a
user. Clients know none of them. What a template takes is found out once by `rules_of`, with short conversations of every kind;
`shaped` then changes a conversation only as far as the template needs it, and loses no text of it.

A message is shaped without a look at those behind it. So a conversation and its next turn have the same beginning, and the KV
cache finds it. That is why a later system message stays in its place, as text of the user, where the template takes none there:
joined with the first one it would change the beginning of every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

import msgspec

from engine.types import Message, Part

JOINT = "\n\n"
"""Between the texts of messages that become one."""


@dataclass(frozen=True)
class Rules:
    """What a template takes, each with its text in the prompt.

    `several_systems` at the beginning, `later_system` behind other messages, `repeated` messages of one role. `no_user`: a
    conversation without a message of the user. `assistant_first`, `assistant_last`: where an assistant's message may stand.
    `names` of messages. `parts`: content must be a list of parts.
    """

    system: bool = False
    several_systems: bool = False
    later_system: bool = False
    repeated: bool = False
    no_user: bool = False
    assistant_first: bool = False
    assistant_last: bool = False
    names: bool = False
    parts: bool = False


def rules_of(render: Callable[[Sequence[Message], bool], str | None]) -> Rules | None:
    """The rules of a template. `render` gives the prompt of a conversation, with content as parts if its second argument says
    so; None: the template refuses it. None: the template refuses every conversation."""

    def takes(*roles: str, parts: bool, name: str | None = None) -> bool | None:
        said = [Message(role, (Part("text", text=f"probe{i}word"),), name) for i, role in enumerate(roles)]
        text = render(said, parts)
        if text is None:
            return None
        return all(message.parts[0].text in text for message in said) and (name is None or name in text)

    as_text = takes("user", parts=False)
    parts = not as_text and bool(takes("user", parts=True))
    if as_text is None and not parts:
        return None

    def every(*conversations: str) -> bool:
        return all(takes(*(_ROLES[letter] for letter in roles), parts=parts) for roles in conversations)

    return Rules(
        system=every("su", "suau"),
        several_systems=every("ssu"),
        later_system=every("suasu", "usu", "suas"),
        repeated=every("uu", "uaau", "uuau"),
        no_user=every("s", "sa"),
        assistant_first=every("a", "au", "sau"),
        assistant_last=every("ua", "uaua"),
        names=bool(takes("user", parts=parts, name="probename")),
        parts=parts,
    )


_ROLES = {"s": "system", "u": "user", "a": "assistant"}


def shaped(messages: Sequence[Message], rules: Rules) -> tuple[Message, ...]:
    """The same conversation within `rules`. At least one message comes back for one that is given."""
    lead = tuple(takewhile(lambda message: message.role == "system", messages))
    rest = list(messages[len(lead) :])
    if len(lead) > 1 and not rules.several_systems:
        lead = (joined(lead, "system"),)
    if not rules.later_system:
        rest = [_as_user(message) if message.role == "system" else message for message in rest]
    if lead and (not rules.system or (not rest and not rules.no_user)):
        first = [*lead, rest.pop(0)] if rest and rest[0].role == "user" else list(lead)
        lead, rest = (), [joined(first, "user"), *rest]
    if rest and rest[0].role == "assistant" and not rules.assistant_first:
        rest.insert(0, _EMPTY)
    if not rules.repeated:
        rest = [joined(tuple(same), role) for role, same in groupby(rest, key=lambda message: message.role)]
    if rest and rest[-1].role == "assistant" and not rules.assistant_last:
        rest.append(_EMPTY)
    return (*lead, *rest)


_EMPTY = Message("user", (Part("text"),))


def joined(messages: Sequence[Message], role: str) -> Message:
    """One message of `role` that says what these say. Its name is theirs, if they have the same."""
    if len(messages) == 1:
        return messages[0] if messages[0].role == role else msgspec.structs.replace(messages[0], role=role)
    parts: list[Part] = []
    for message in messages:
        new = [part for part in message.parts if part.type != "text" or part.text]
        if parts and new:
            before, after = parts[-1], new[0]
            if before.type == after.type == "text":
                parts[-1:] = [Part("text", text=f"{before.text}{JOINT}{after.text}")]
                new = new[1:]
        parts += new
    names = {message.name for message in messages}
    return Message(role, tuple(parts), names.pop() if len(names) == 1 else None)


def _as_user(message: Message) -> Message:
    return msgspec.structs.replace(message, role="user", name=None)
