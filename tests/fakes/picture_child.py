"""A picture child that dies as its picture says."""

from __future__ import annotations

import os
import sys

from duet.channel import BlockingChannel, ChannelClosed
from duet.supervise.limits import MEMORY_EXIT
from engine.pictures.messages import Decode, Pixels


def main() -> None:
    channel: BlockingChannel[Decode] = BlockingChannel.from_fd(int(sys.argv[sys.argv.index("--fd") + 1]), Decode)
    while True:
        try:
            asked = channel.receive()
        except ChannelClosed:
            return
        match asked.data:
            case b"abort":
                os.abort()
            case b"memory":
                os._exit(MEMORY_EXIT)
        channel.send(Pixels(asked.id, 1, 1, b"rgb"))


if __name__ == "__main__":
    main()
