"""What is wrong with a file."""

from __future__ import annotations

from duet.errors import InvalidRequest


class InvalidAudio(InvalidRequest):
    """The file is not usable audio. Names the parameter `file`."""

    code = "invalid_audio"

    def __init__(self, message: str) -> None:
        super().__init__(message, param="file")


class TooLong(InvalidAudio):
    """The file is longer than what is taken."""
