"""Colours become sRGB, with the profile that a picture brings along. Only the child imports this."""

from __future__ import annotations

import io
from typing import Final

from PIL import Image, ImageCms

MAX_PROFILE_BYTES: Final = 4 << 20
_MODES: Final = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK", "LAB": "Lab"}
"""Pillow's modes that profiles are made for, and the profile's word for them."""
_FLAGS: Final = ImageCms.Flags.BLACKPOINTCOMPENSATION


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An RGB picture in sRGB from one of L, RGB, CMYK or LAB. A profile that is broken, or made for another kind of picture,
    counts as none: that is what browsers do."""
    if not profile or len(profile) > MAX_PROFILE_BYTES or image.mode not in _MODES:
        return _plain(image)
    try:
        return _by_profile(image, profile)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _plain(image)


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _by_profile(image: Image.Image, data: bytes) -> Image.Image:
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    if profile.profile.xcolor_space.strip() != _MODES[image.mode]:
        raise ValueError("the profile is for another kind of picture")
    if "srgb" in (profile.profile.profile_description or "").lower():
        return image.convert("RGB")  # exactly, not through a transform that rounds
    transform = ImageCms.buildTransform(
        profile, ImageCms.createProfile("sRGB"), image.mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC, _FLAGS
    )
    return transform.apply(image)
