"""Starts a worker: a new process, or the spare one, is told what to be, and waited for until its model is loaded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from duet.channel import ChannelClosed
from duet.errors import Unavailable
from duet.supervise.child import Child
from engine.fleet.handle import STOP_SECONDS, WorkerHandle
from engine.fleet.protocol import FromWorker, LoadFailed, Ready
from engine.worker_config import WorkerConfig

logger = logging.getLogger(__name__)

# Models are fetched by the gateway; a worker's libraries must not look for anything on a network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


class EndedWhileLoading(Unavailable):
    """The process ended by itself before its model was loaded."""


async def new_process(module: str, name: str) -> Child[FromWorker]:
    """Run `python -m module`. It imports what every model needs, and waits for its `WorkerConfig`. Raises `OSError`."""
    return await Child.start(module, (), FromWorker, name=f"worker:{name}", environment=OFFLINE)


async def start_worker(
    module: str,
    config: WorkerConfig,
    *,
    timeout_seconds: float,
    silence_seconds: float = 0.0,
    spare: Child[FromWorker] | None = None,
    on_process: Callable[[int], None] = lambda pid: None,
) -> WorkerHandle:
    """A worker with its model loaded, within `timeout_seconds`: in the `spare` process if there is one, else in a new one.

    `on_process` gets the process id as soon as it is known, and a second one if the spare ends before its model is loaded and a
    new process takes its place. `silence_seconds`: see `WorkerHandle.watch`. Raises `Unavailable` with the loader's words.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            child, ready = await _loaded(module, config, spare, on_process)
    except TimeoutError as error:
        message = f"{config.model} did not load in {timeout_seconds:.0f} s; the engine's log says more"
        raise Unavailable(message, param="model") from error
    return WorkerHandle(child, ready, config.kv, silence_seconds=silence_seconds)


async def _loaded(
    module: str, config: WorkerConfig, spare: Child[FromWorker] | None, on_process: Callable[[int], None]
) -> tuple[Child[FromWorker], Ready]:
    """A process with the model loaded. When a spare ends, the cause may be the model or something earlier: a new process
    decides."""
    if spare is not None:
        spare.name = f"worker:{config.model}"
        on_process(spare.pid)
        try:
            return spare, await _ready(spare, config)
        except EndedWhileLoading as error:
            logger.warning("the spare worker was lost: %s", error.message, extra={"action": "spare_lost"})
    try:
        child = await new_process(module, config.model)
    except OSError as error:
        raise Unavailable(f"no process could be started for {config.model}: {error}", param="model") from error
    on_process(child.pid)
    return child, await _ready(child, config)


async def _ready(child: Child[FromWorker], config: WorkerConfig) -> Ready:
    """Tell a process what to be, and return its answer once its model is loaded. Raises `EndedWhileLoading`, or
    `Unavailable` with the loader's words. When anything is raised, the process has ended."""
    # Its command line does not say which model it has: this line does.
    extra = {"action": "worker_told", "model": config.model, "child_pid": child.pid}
    logger.info("%s loads", child.name, extra=extra)
    try:
        with contextlib.suppress(ChannelClosed):  # `_first_word` then says so
            await child.channel.send(config)
        first = await _first_word(child, config.model)
        if isinstance(first, Ready):
            return first
        await child.stop()
    except EndedWhileLoading:
        raise
    except BaseException:
        child.kill()
        await child.stop()
        raise
    said = first.message if isinstance(first, LoadFailed) else f"said {type(first).__name__} instead of Ready"
    raise Unavailable(f"{config.model} cannot be loaded: {said}", param="model")


async def _first_word(child: Child[FromWorker], model: str) -> FromWorker:
    try:
        return await child.channel.receive()
    except ChannelClosed as error:
        with contextlib.suppress(TimeoutError):  # a process that ends by itself keeps its own exit code
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()
        code = await child.stop()
        message = f"{model} ended while it loaded (exit code {code}); the engine's log says more"
        raise EndedWhileLoading(message, param="model") from error
