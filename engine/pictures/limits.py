"""The bounds of pictures, and the error of a picture that is beyond them or broken."""

from __future__ import annotations

from typing import Final

MAX_IMAGE_BYTES: Final = 20 << 20
MAX_IMAGE_PIXELS: Final = 64 << 20
"""By the header of one picture."""
MAX_ASPECT: Final = 200
"""The longer side over the shorter one. Processors of models refuse more."""
MAX_SEEN_PIXELS: Final = 1 << 24
"""A larger picture is scaled down to this. No model of the presets looks at more: Qwen3-VL's processor stops here itself."""


class BadPicture(Exception):
    """The message is a sentence about the picture."""


def check_size(width: int, height: int) -> None:
    """Raises `BadPicture` for a picture without pixels, with too many, or of a shape that no model takes."""
    if width < 1 or height < 1:
        raise BadPicture(f"the picture has no pixels ({width} x {height})")
    if width * height > MAX_IMAGE_PIXELS:
        raise BadPicture(
            f"a picture of {width} x {height} pixels is too large: {MAX_IMAGE_PIXELS} pixels are taken; scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadPicture(
            f"a picture of {width} x {height} pixels is too narrow: "
            f"the absolute aspect ratio must be at most {MAX_ASPECT}; cut it into pieces"
        )
