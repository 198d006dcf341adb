"""Parses pictures in a process of its own: a file that breaks a decoder ends this process and nothing else.

`python -m engine.pictures.child --fd N`
"""

from __future__ import annotations

import argparse
import os
import sys

from duet.channel import BlockingChannel, ChannelClosed
from engine.pictures.conversion import converted
from engine.pictures.limits import BadPicture
from engine.pictures.messages import Answer, Decode, Measure, Measured, Pixels, Question, Refused
from engine.pictures.opening import opened


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.pictures.child", description="Pictures through Pillow.")
    parser.add_argument("--fd", type=int, required=True)
    channel: BlockingChannel[Question] = BlockingChannel.from_fd(parser.parse_args().fd, Question)
    _hush()
    try:
        while True:
            channel.send(answered(channel.receive()))
    except ChannelClosed:
        return 0


def _hush() -> None:
    """libtiff writes a line for each wrong bit of a file to descriptor 2, which is the log. Errors of Python still get there."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def answered(question: Question) -> Answer:
    try:
        match question:
            case Measure(name, data):
                return Measured(name, *opened(data).size)
            case Decode(name, data):
                image = converted(data)
                return Pixels(name, image.width, image.height, image.tobytes())
    except BadPicture as error:
        return Refused(question.id, str(error))
    except MemoryError:
        return Refused(question.id, "the picture takes too much memory to decode; scale it down")
    except Exception as error:  # noqa: BLE001 - what a reader trips over is the picture's fault, and this process must go on
        return Refused(question.id, f"this is not a readable picture ({type(error).__name__})")


if __name__ == "__main__":
    sys.exit(main())
