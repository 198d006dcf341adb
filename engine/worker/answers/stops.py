"""Stop strings in a stream: text is held back while it may be the beginning of one.

Stop strings that are special tokens never show in the text: `families/text.py` ends the answer at their ids.
"""

from __future__ import annotations


class StopMatcher:
    """Feed text piece by piece; the text that comes out can be shown.

    The cost of a piece is bounded by the longest stop string, not by the answer's length.
    """

    def __init__(self, stop_strings: tuple[str, ...]) -> None:
        self._stop_strings = stop_strings
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string has come. If one has, nothing more may be fed."""
        if not self._stop_strings:
            return text, False
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stop_strings) if at >= 0]
        if found:
            shown, self._held = self._held[: min(found)], ""
            return shown, True
        keep = max(overlap(self._held, stop) for stop in self._stop_strings)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown, False

    def flush(self) -> str:
        """The answer is over, so the text that was held back is not a stop string: it is returned."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, shorter than `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
