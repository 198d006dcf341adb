"""Numbers of bytes as people read them."""

from __future__ import annotations


def readable(count: float) -> str:
    """Bytes in the largest unit of which they are at least one: "512 B", "1.5 kB", "20.0 MB", "1.2 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def gigabytes(count: float) -> str:
    """Bytes in GB whatever they are, so that sizes of models compare at a glance: "0.4 GB"."""
    return f"{count / 1e9:.1f} GB"
