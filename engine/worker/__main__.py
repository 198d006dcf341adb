"""A worker process: one model, one channel to the gateway. `python -m engine.worker --fd N --path DIR --model ID …`"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.logs import configure_logs
from engine.fleet.protocol import Assign, LoadFailed, Ready, ToWorker

if TYPE_CHECKING:
    from engine.worker.loop import MakeCache


def main() -> int:
    arguments = _arguments(sys.argv[1:])
    # The gateway ends us by closing the channel; SIGTERM must end us too while a model loads.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    configure_logs(arguments.log_level, f"worker:{arguments.model or 'spare'}")
    channel: BlockingChannel[Any] = BlockingChannel.from_fd(arguments.fd, ToWorker | Assign)
    if arguments.spare:
        assigned = _assigned(channel)
        if assigned is None:
            return 0  # the gateway has no use for a spare any more
        arguments = _arguments(["--fd", str(arguments.fd), *assigned.arguments])
        configure_logs(arguments.log_level, f"worker:{arguments.model}")
    mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loaded_event = threading.Event()
    threading.Thread(target=_receive, args=(channel, mailbox, loaded_event), daemon=True, name="mailbox").start()

    from engine.worker.loop import Loop  # MLX is imported here: about a second
    from engine.worker.runtime import memory
    from engine.worker.runtime.loader import LoadError, load

    memory.configure(arguments.wired_limit)
    try:
        loaded = load(arguments.path, arguments.role)
        loop = Loop(
            loaded,
            channel,
            mailbox,
            max_rows=arguments.max_rows,
            chunk_tokens=arguments.prefill_chunk,
            kv_bits=arguments.kv_bits,
            active_kv_bytes=arguments.active_kv_bytes or None,
            make_cache=_cache_maker(arguments),
            flush_seconds=arguments.kv_flush_seconds,
        )
        loaded_event.set()
        # From here on the loop ends in order: what is only in memory goes to SSD.
        signal.signal(signal.SIGTERM, lambda *_: mailbox.put(None))
        channel.send(Ready(loaded.capabilities, loaded.context, loaded.weight_bytes, loaded.vocabulary))
    except LoadError as error:
        channel.send(LoadFailed(str(error)))
        return 1
    except ChannelClosed:
        return 0  # the gateway went while the model loaded
    loop.run()
    return 0


def _assigned(channel: BlockingChannel[Any]) -> Assign | None:
    """Import what every model needs, then wait to hear which one it is. None: the channel was closed."""
    import engine.worker.loop  # noqa: F401 - with all that it imports
    from engine.worker.runtime.loader import import_libraries

    import_libraries()
    try:
        message = channel.receive()
    except ChannelClosed:
        return None
    assert isinstance(message, Assign)
    return message


def _arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="engine.worker", description="One model in a process of its own.")
    parser.add_argument("--fd", type=int, required=True, help="inherited Unix socket to the gateway")
    parser.add_argument("--spare", action="store_true", help="import everything and wait for the rest of these")
    parser.add_argument("--path", type=Path, help="model folder")
    parser.add_argument("--model", help="the model's id, for the log")
    parser.add_argument("--role", choices=("chat", "embedding", "asr"), default="chat")
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--prefill-chunk", type=int, default=256, help="prompt tokens between two decode steps")
    parser.add_argument(
        "--kv-bits", type=int, choices=(4, 8), help="quantise plain KV; rows then run one after another"
    )
    parser.add_argument("--kv-memory-bytes", type=int, default=0, help="KV kept in memory; 0 keeps none anywhere")
    parser.add_argument("--kv-fingerprint", default="", help="which weights these are")
    parser.add_argument("--kv-off", default="memory only", help="why there is no directory")
    parser.add_argument("--kv-directory", type=Path, help="where KV goes to SSD; without it KV stays in memory")
    parser.add_argument("--kv-disk-bytes", type=int, default=0, help="what the directory may take")
    parser.add_argument("--kv-write-bytes", type=int, default=0, help="what may be written to it a day")
    parser.add_argument("--kv-free-bytes", type=int, default=0, help="what must stay free on the disk")
    parser.add_argument("--kv-age-seconds", type=float, default=30 * 86_400.0, help="entries unused for longer go")
    parser.add_argument(
        "--kv-flush-seconds", type=float, default=10.0, help="time to write what is only in memory at the end"
    )
    parser.add_argument(
        "--active-kv-bytes", type=int, default=0, help="KV of running requests; 0: as much as they need"
    )
    parser.add_argument("--wired-limit", type=int, default=0, help="bytes that Metal keeps wired; 0: off")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args(given)
    if not arguments.spare and (arguments.path is None or arguments.model is None):
        parser.error("--path and --model are needed without --spare")
    return arguments


def _cache_maker(arguments: argparse.Namespace) -> MakeCache | None:
    """How the worker's KV cache is made; None when it shall keep nothing."""
    if not arguments.kv_memory_bytes:
        return None

    from engine.kvstore.directory import Directory, Limits
    from engine.worker.kvcache.cache import Identity, PrefixCache

    identity = Identity(arguments.kv_fingerprint, quantisation=f"{arguments.kv_bits or 'no'} bits")
    limits = Limits(
        arguments.kv_disk_bytes, arguments.kv_write_bytes, arguments.kv_free_bytes, arguments.kv_age_seconds
    )

    def open_directory() -> Directory:
        return Directory(arguments.kv_directory, limits, {"model": arguments.model})

    return partial(
        PrefixCache,
        identity=identity,
        memory_bytes=arguments.kv_memory_bytes,
        off=arguments.kv_off,
        open_directory=open_directory if arguments.kv_directory is not None and limits.disk_bytes else None,
    )


def _receive(channel: BlockingChannel[Any], mailbox: queue.SimpleQueue[Any], loaded: threading.Event) -> None:
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
