"""A worker process: one model, one channel to the gateway. `python -m engine.worker --fd N --path DIR --model ID …`"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.logs import configure_logs
from engine.workers.protocol import LoadFailed, Ready, ToWorker


def main() -> int:
    arguments = _arguments()
    configure_logs(arguments.log_level, f"worker:{arguments.model}")
    # The gateway ends us by closing the channel; SIGTERM must end us too while a model loads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    channel: BlockingChannel[ToWorker] = BlockingChannel.from_fd(arguments.fd, ToWorker)
    mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loaded_event = threading.Event()
    threading.Thread(target=_receive, args=(channel, mailbox, loaded_event), daemon=True, name="mailbox").start()

    from engine.worker.loop import Loop  # MLX is imported here: about a second
    from engine.worker.runtime import memory
    from engine.worker.runtime.loader import LoadError, load

    memory.configure()
    try:
        loaded = load(arguments.path, arguments.role)
        loop = Loop(loaded, channel, mailbox, max_rows=arguments.max_rows, chunk_tokens=arguments.prefill_chunk)
        loaded_event.set()
        channel.send(Ready(loaded.capabilities, loaded.context, loaded.weight_bytes, loaded.vocabulary))
    except LoadError as error:
        channel.send(LoadFailed(str(error)))
        return 1
    except ChannelClosed:
        return 0  # the gateway went while the model loaded
    loop.run()
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.worker", description="One model in a process of its own.")
    parser.add_argument("--fd", type=int, required=True, help="inherited Unix socket to the gateway")
    parser.add_argument("--path", type=Path, required=True, help="model folder")
    parser.add_argument("--model", required=True, help="the model's id, for the log")
    parser.add_argument("--role", choices=("chat", "embedding", "asr"), default="chat")
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--prefill-chunk", type=int, default=256, help="prompt tokens between two decode steps")
    parser.add_argument("--log-level", default="info")
    return parser.parse_args()


def _receive(channel: BlockingChannel[ToWorker], mailbox: queue.SimpleQueue[Any], loaded: threading.Event) -> None:
    try:
        while True:
            mailbox.put(channel.receive())
    except ChannelClosed:
        if not loaded.is_set():
            os._exit(0)  # nobody waits for the model any more, and loading one may take minutes
        mailbox.put(None)
    except msgspec.MsgspecError as error:
        mailbox.put(error)  # the main thread ends the process with it: a thread that died quietly would leave it deaf


if __name__ == "__main__":
    sys.exit(main())
