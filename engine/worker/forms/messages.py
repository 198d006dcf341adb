"""Messages between a worker and its compiling child (`duet.channel`)."""

from __future__ import annotations

from typing import Literal

import msgspec


class Trial(msgspec.Struct, frozen=True):
    """Can this structure be compiled? `kind` and `text` are those of `engine.types.Structure`."""

    id: str
    kind: Literal["json_schema", "regex", "choice", "grammar"]
    text: str


class Verdict(msgspec.Struct, frozen=True):
    """It can, as `grammar` in llguidance's own notation, and that took `seconds`; or it cannot, and `refusal` says why."""

    id: str
    grammar: str = ""
    refusal: str = ""
    seconds: float = 0.0
