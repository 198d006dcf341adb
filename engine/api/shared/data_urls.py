"""data: URLs, as leniently as browsers read them (https://fetch.spec.whatwg.org/#data-urls). The media type is not read: the data
says what it is."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

_BASE64: Final = re.compile(r";[ ]*base64[ ]*\Z", re.IGNORECASE)
_WHITESPACE: Final = b" \t\n\f\r"
_NO_BREAKS: Final = {ord(mark): None for mark in "\t\n\r"}
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
"""The alphabet that is made for URLs is taken as well."""
_SLICE: Final = 1 << 20
"""Bytes of base64, a multiple of four."""


def decoded(url: str) -> bytes:
    """The bytes that the URL holds. Raises `ValueError` with a sentence."""
    comma, end = url.find(","), url.find("#")
    end = len(url) if end < 0 else end
    if not 0 <= comma < end:
        raise ValueError("the data: URL has no comma")
    data = url[comma + 1 : end].encode("utf-8", "replace")
    if b"%" in data:
        data = unquote_to_bytes(data)
    if not _BASE64.search(url[:comma].translate(_NO_BREAKS)):
        return data
    data = data.translate(_URL_SAFE, _WHITESPACE)
    try:
        return b"".join(_from_base64(data))
    except binascii.Error as error:
        raise ValueError(f"the data: URL is not valid base64: {error}") from error


def _from_base64(data: bytes) -> Iterator[bytes]:
    """In slices: between them other threads run. Padding may be missing. Raises `binascii.Error`."""
    size = len(data)
    while size and data[size - 1 : size] == b"=":
        size -= 1
    for start in range(0, size, _SLICE):
        piece = data[start : min(start + _SLICE, size)]
        yield binascii.a2b_base64(piece + b"=" * (-len(piece) % 4), strict_mode=True)
