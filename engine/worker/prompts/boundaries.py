"""Where a prompt can be cut so that other prompts begin in the same way: after the system block, after a document that a
question follows, and before the answer.

The first and the last are found with the chat template itself: the conversation is rendered in another way, and the two texts
are compared from their beginning. Such a cut is moved back to a special token. Text is never tokenised across a special token,
so what follows cannot change the tokens before it. With the tokenizers in use the same holds after a blank line, unless another
newline follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from duet.errors import InvalidRequest
from engine.types import GenerationRequest, Message, Part
from engine.worker.model import Loaded
from engine.worker.prompts.template import render

_OTHER = Message("user", (Part("text", text="\u2603"),))
"""A user message that begins as no real one is likely to."""


@dataclass(frozen=True)
class Cuts:
    """Token positions: after the system block; behind the last blank line of a conversation's only message; at the end of the
    last message, before the generation prompt. 0: there is none."""

    system: int = 0
    document: int = 0
    boundary: int = 0


def cuts(loaded: Loaded, request: GenerationRequest, text: str, encoded: Any, prompt: Sequence[int]) -> Cuts:
    """The cuts of `prompt`, which is the rendered `text`, `encoded` by the tokenizer, with images expanded."""
    if request.prompt is not None:
        # All that is known of a raw prompt is its end. The last token stays outside: a longer text may tokenise it differently.
        return Cuts(boundary=len(prompt) - 1)
    ends = [end for _, end in encoded.offsets]
    special = frozenset(loaded.tokenizer.added_tokens_decoder)
    leading = tuple(takewhile(lambda message: message.role == "system", request.messages))
    system = 0
    if leading and len(leading) < len(request.messages):
        system = _common(text, _rendered(loaded, request, (*leading, _OTHER), answer=True))
    boundary = _common(text, _rendered(loaded, request, request.messages, answer=False))
    found = (
        _snapped(encoded.ids, ends, special, system),
        _behind_document(request, text, encoded.offsets),
        _snapped(encoded.ids, ends, special, boundary),
    )
    return Cuts(*(_expanded(encoded.ids, position, prompt, loaded.image_token_id) for position in found))


def role_at(request: GenerationRequest, encoded: Any | None, text: str, position: int) -> str:
    """The role of the message that the token at `position` of the `encoded` text belongs to. "template" between messages, and
    where `encoded` is None, as in prompts with images. "prompt" in a raw prompt."""
    if request.prompt is not None:
        return "prompt"
    span = encoded.token_to_chars(position) if encoded is not None and position < len(encoded) else None
    if span is None:
        return "template"
    here, start = span[0], 0
    for message in request.messages:
        content = "".join(part.text for part in message.parts)
        at = text.find(content, start) if content else -1
        if at < 0:
            continue
        if at <= here < at + len(content):
            return message.role
        start = at + len(content)
    return "template"


def _rendered(loaded: Loaded, request: GenerationRequest, messages: tuple[Message, ...], *, answer: bool) -> str:
    try:
        return render(loaded, request, messages=messages, answer=answer)
    except InvalidRequest:
        return ""  # the template refuses such a conversation: there is no cut


def _common(first: str, second: str) -> int:
    """How many characters both begin with. Found by halving, so long prompts are compared at the speed of memory."""
    least, most = 0, min(len(first), len(second))
    while least < most:
        middle = (least + most + 1) // 2
        if first.startswith(second[:middle]):
            least = middle
        else:
            most = middle - 1
    return least


def _behind_document(request: GenerationRequest, text: str, offsets: Sequence[tuple[int, int]]) -> int:
    """The position behind the last blank line of the user's message, if there is only one message. A document often stands
    before the question, and the next question comes with the same document."""
    messages = [message for message in request.messages if message.role != "system"]
    if len(messages) != 1 or messages[0].role != "user":
        return 0
    content = "".join(part.text for part in messages[0].parts).strip()
    at = text.rfind(content) if content else -1
    blank = text.rfind("\n\n", at, at + len(content)) if at >= 0 else -1
    if blank < 0:
        return 0
    behind = blank + len("\n\n")
    position = next((i for i, (start, _) in enumerate(offsets) if start >= behind), 0)
    return position if position and offsets[position - 1][1] <= behind else 0


def _snapped(ids: Sequence[int], ends: Sequence[int], special: frozenset[Any], length: int) -> int:
    """The last position within `length` characters that is directly before or behind a special token. In a text without
    special tokens, the position behind the last whole token."""
    whole = next((i for i, end in enumerate(ends) if end > length), len(ends))
    if not special.intersection(ids):
        return whole
    return next((i for i in range(whole, 0, -1) if not special.isdisjoint(ids[i - 1 : i + 1])), 0)


def _expanded(ids: Sequence[int], position: int, prompt: Sequence[int], image_token: int | None) -> int:
    """The same place in `prompt`, where each image takes many tokens: behind as many tokens equal to the one before it."""
    if len(ids) == len(prompt) or position == 0:
        return position
    mark = ids[position - 1]
    if mark == image_token:
        return 0
    count = sum(token == mark for token in ids[:position])
    places = [i for i, token in enumerate(prompt) if token == mark]
    return places[count - 1] + 1 if len(places) >= count else 0
