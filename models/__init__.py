"""Where the model cards and the embedded demonstration models lie, in a checkout and in an installed wheel alike."""

from pathlib import Path

CARDS = Path(__file__).parent
EMBEDDED = CARDS / "embedded"
