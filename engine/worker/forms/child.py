"""Compiles structures in a process of its own, to see whether they can be: `python -m engine.worker.forms.child --fd N`.

The vocabulary here is the 256 bytes: they need no time to load, and what a structure costs to compile does not depend on them.
"""

from __future__ import annotations

import argparse
import sys
import time

from llguidance import LLTokenizer

from duet.channel import BlockingChannel, ChannelClosed
from engine.types import Structure
from engine.worker.forms.grammar import compiled, translated
from engine.worker.forms.messages import Trial, Verdict


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.worker.forms.child", description="Forms through llguidance.")
    parser.add_argument("--fd", type=int, required=True)
    channel: BlockingChannel[Trial] = BlockingChannel.from_fd(parser.parse_args().fd, Trial)
    tokenizer = LLTokenizer("byte")
    try:
        while True:
            channel.send(verdict(tokenizer, channel.receive()))
    except ChannelClosed:
        return 0


def verdict(tokenizer: LLTokenizer, trial: Trial) -> Verdict:
    begun = time.perf_counter()
    try:
        grammar, refusal = translated(tokenizer, Structure(trial.kind, trial.text, ""))
        if not refusal:
            _, refusal = compiled(tokenizer, grammar)
    except BaseException as error:  # noqa: BLE001 - a panic of the library is no Exception
        return Verdict(trial.id, refusal=f"cannot be followed: the compiler failed on it ({type(error).__name__})")
    if refusal:
        return Verdict(trial.id, refusal=refusal)
    return Verdict(trial.id, grammar, seconds=time.perf_counter() - begun)


if __name__ == "__main__":
    sys.exit(main())
