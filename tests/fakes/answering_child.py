"""A child process that speaks the channel: `python -m tests.fakes.answering_child --fd N`. What it does, it is told."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time

import msgspec

from duet.channel import BlockingChannel, ChannelClosed


class Ask(msgspec.Struct, tag="ask"):
    """`do` is "answer", "late" (others may be answered first), "die" (exit code 3), "junk", "hang" (no answer to this
    one), or "stuck" (answers, then is deaf to SIGTERM and to the end of the channel)."""

    id: str
    do: str = "answer"


class Answer(msgspec.Struct, tag="answer"):
    id: str
    pid: int


class Junk(msgspec.Struct, tag="junk"):
    """A message that the parent did not expect."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    channel: BlockingChannel[Ask] = BlockingChannel.from_fd(parser.parse_args().fd, Ask)
    while True:
        try:
            message = channel.receive()
        except ChannelClosed:
            return
        match message.do:
            case "answer":
                channel.send(Answer(message.id, os.getpid()))
            case "die":
                os._exit(3)
            case "junk":
                channel.send(Junk())
            case "stuck":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                channel.send(Answer(message.id, os.getpid()))
                time.sleep(600)
            case "late":
                threading.Timer(0.2, channel.send, (Answer(message.id, os.getpid()),)).start()
            case _:
                continue


if __name__ == "__main__":
    main()
