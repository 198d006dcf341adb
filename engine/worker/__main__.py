"""A worker process: one model, one channel to the gateway. Run as `python -m engine.worker --fd N`; the first message is its
`WorkerConfig`."""

from __future__ import annotations

import argparse
import logging
import os
import queue
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from duet.channel import BlockingChannel, ChannelClosed
from duet.logs import configure_logs
from engine.fleet.protocol import LoadFailed, Ready, ToWorker
from engine.worker_config import WorkerConfig

if TYPE_CHECKING:
    from engine.worker.sequences import MakeCache

logger = logging.getLogger(__name__)


def main() -> int:
    parser = argparse.ArgumentParser(prog="engine.worker", description="One model in a process of its own.")
    parser.add_argument("--fd", type=int, required=True, help="inherited Unix socket to the gateway")
    fd = parser.parse_args().fd
    # The gateway ends this process by closing the channel. SIGTERM must end it too, even while a model loads.
    # Not by SystemExit: a library may catch it while it is imported.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    configure_logs("info", "worker")
    channel: BlockingChannel[Any] = BlockingChannel.from_fd(fd, WorkerConfig | ToWorker)
    mailbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    loaded = threading.Event()
    threading.Thread(target=_receive, args=(channel, mailbox, loaded), daemon=True, name="mailbox").start()

    import engine.worker.loop  # noqa: F401 - MLX and the libraries, a second or more: a spare does this while it waits

    told = mailbox.get()
    try:
        if not isinstance(told, WorkerConfig):
            cause = told if isinstance(told, msgspec.MsgspecError) else f"{type(told).__name__} came first"
            logger.error("not told what to be: %s", cause, extra={"action": "worker_config_refused"})
            channel.send(LoadFailed(f"its worker's configuration cannot be read: {cause}"))
            return 1
        return _serve(told, channel, mailbox, loaded)
    except ChannelClosed:
        return 0  # the gateway ended while the model loaded


def _serve(
    config: WorkerConfig, channel: BlockingChannel[Any], mailbox: queue.SimpleQueue[Any], loaded: threading.Event
) -> int:
    """Load the model, and answer until the gateway ends. Returns the exit code. Raises `ChannelClosed` when the gateway
    ends before the model is loaded."""
    from engine.worker.loop import Loop
    from engine.worker.runtime import memory
    from engine.worker.runtime.loader import LoadError, load

    configure_logs(config.log_level, f"worker:{config.model}")
    memory.configure(config.wired_limit_bytes)
    try:
        model = load(Path(os.fsdecode(config.path)), config.role)
        loop = Loop(model, channel, mailbox, config, make_cache=_cache_maker(config))
    except LoadError as error:
        channel.send(LoadFailed(str(error)))
        return 1
    loaded.set()
    # From here on SIGTERM ends the loop in order: KV that is only in memory goes to SSD.
    signal.signal(signal.SIGTERM, lambda *_: mailbox.put(None))
    channel.send(Ready(model.capabilities, model.context, model.weight_bytes, model.vocabulary))
    loop.run()
    return 0


def _cache_maker(config: WorkerConfig) -> MakeCache | None:
    """Makes the worker's KV cache; None when it is to keep nothing."""
    lease = config.kv
    if lease is None or not lease.memory_bytes:
        return None

    from engine.kvstore.directory import Directory, Limits
    from engine.worker.kvcache.cache import Identity, PrefixCache

    identity = Identity(lease.fingerprint, quantisation=f"{config.options.kv_bits or 'no'} bits")
    limits = Limits(lease.disk_bytes, lease.write_bytes, lease.free_bytes, lease.age_seconds)
    open_directory = None
    if lease.directory is not None and lease.disk_bytes:
        open_directory = partial(Directory, Path(os.fsdecode(lease.directory)), limits, {"model": config.model})
    return partial(
        PrefixCache,
        identity=identity,
        memory_bytes=lease.memory_bytes,
        off=lease.off,
        open_directory=open_directory,
    )


def _receive(channel: BlockingChannel[Any], mailbox: queue.SimpleQueue[Any], loaded: threading.Event) -> None:
    try:
        while True:
            mailbox.put(channel.receive())
    except ChannelClosed:
        if not loaded.is_set():
            os._exit(0)  # the model is no longer wanted, and the load may take minutes more
        mailbox.put(None)
    except msgspec.MsgspecError as error:
        mailbox.put(
            error
        )  # the main thread ends the process with it: if only this thread ended, the process would be deaf


if __name__ == "__main__":
    sys.exit(main())
