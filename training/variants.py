"""The espeak-ng variants of each data set. No variant is in two sets."""

from __future__ import annotations

from typing import Final

HELD_OUT_VARIANTS: Final = tuple("m4 m8 f3 klatt3 Annie john linda max quincy paul".split())
"""The voices of the frozen evaluation sets, which are never in training or tuning data."""
DEVELOPMENT_VARIANTS: Final = tuple("f5 klatt2 Gene Denis belinda iven".split())
"""Voices for choices during training, such as thresholds and when to stop."""
TRAIN_VARIANTS: Final = tuple(
    "m1 m2 m3 m5 m6 m7 f1 f2 f4 klatt klatt4 Alex Andy Lee Mario Michael Mike adam anika antonio benjamin boris david ed "
    "edward grandpa marcelo miguel pablo robert sandro steph travis victor zac Alicia Andrea Diogo aunty michel".split()
)
