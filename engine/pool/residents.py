"""Models that are loaded when the engine starts, and stay."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from duet.errors import Busy, DuetError, Unavailable
from engine.catalogue import Catalogue
from engine.pool.residency import Residency

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 60.0
"""A resident model that could not be loaded is tried again after this long."""


async def load_residents(wished: tuple[str, ...] | None, catalogue: Catalogue, residency: Residency) -> None:
    """Load the `wished` models (ids, aliases or roles), and try again those that cannot be loaded just now. None: the roles of
    the preset, as far as real models for them are on this machine."""
    names = [*(residency.preset.resident if wished is None else wished)]
    again = False
    while names := [
        name for name in names if not await _load(name, catalogue, residency, by_preset=wished is None, again=again)
    ]:
        await asyncio.sleep(RETRY_SECONDS)
        again = True


async def _load(name: str, catalogue: Catalogue, residency: Residency, *, by_preset: bool, again: bool) -> bool:
    """Whether this model is done with: it is loaded, or another try is of no use."""
    try:
        card = await catalogue.find(name)
        if by_preset and (card.path is None or card.demonstration):
            return True
        slot = residency.slot(card)
        if again and slot.pinned == "no":
            return True  # an operator unpinned it meanwhile
        slot.pinned = "preset" if by_preset else "resident"
        await residency.load(card.id)
    except DuetError as error:
        logger.warning(
            "%s is to be resident and cannot be: %s", name, error.message, extra={"action": "resident_failed"}
        )
        return not isinstance(error, Unavailable | Busy)
    return True
