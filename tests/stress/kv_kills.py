"""`kill -9` inside writes of the KV cache: a file half written is there when the process dies, and proves it.

    make stress-kv        (python -m tests.stress.kv_kills [--directory-kills N] [--engine-kills N])

A kill counts when the file that was being written is still there, not empty, under its temporary name, after the process is
dead. So that most do, the process is stopped (SIGSTOP) at a random moment first: without such a file it goes on. At two levels:

- `directory`: a process that fills one KV directory is killed at a random moment after such a file appeared. Then the
  directory is opened again: it must keep its cap, hold the same entries as files, and every file must be what was written.
- `worker` and `engine`: `python -m engine` with the checkpoint `thick` is asked the same beginning again and again, and while it
  writes that down, its worker or all of it is killed. What it answers afterwards, greedy, must be what an engine without any
  cache answers, word for word and with the same log-probabilities, and another beginning must have another answer; no file may
  be damaged, the cap must hold, and what one kill left behind must be gone by the next.

At the end the engine is stopped, `duet kv verify` must find nothing, and a sweep must find no orphan. A process that fails any
of this ends the run with exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx

from benchmarks.footprint import descends, processes
from benchmarks.kv.checkpoints import checkpoint
from benchmarks.kv.client import Answer, Client, RequestFailed, Texts, message
from benchmarks.kv.report import RESULTS, write
from benchmarks.kv.servers import NOTHING, PEERS, Budget, Server
from engine.kvstore import blobs
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Entry
from engine.kvstore.survey import damaged_files, directories
from engine.worker.kvcache.io_thread import BUSY_PAUSE_SECONDS

ABOUT = {"model": "kills"}
FILE_BYTES, DIRECTORY_CAP = 5 << 20, 21 << 20
LIMITS = Limits(DIRECTORY_CAP, write_bytes_a_day=1 << 50, free_bytes=0)
LATEST_SECONDS = 0.003
"""After a file appeared: writing one takes about as long."""
HEAD_TOKENS, ANSWER_TOKENS = 300, 8
LONG_ANSWER_TOKENS = 300
"""While rows decode, files are written piece by piece, with pauses: time to see one and to kill."""
ENGINE_CAP = 240_000_000
"""The model's lease is half of it, nine files: every few rounds something has to go."""
WRITE_SECONDS, LAST_SECONDS, TRIES = 60.0, 3.0, 4
LOGPROB_NOISE = 1e-3
"""Between two float32 runs of one prompt in other chunks; a block of KV in a wrong place moves it by far more."""


class Broken(Exception):
    """What must hold does not. The message says what."""


@dataclass
class Tally:
    """Kills of one kind: those that landed inside a write, and all; and what was looked at after them."""

    landed: int = 0
    tried: int = 0
    checked: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory-kills", type=int, default=176, help="of the process that fills a directory")
    parser.add_argument("--engine-kills", type=int, default=24, help="of a worker or of a whole engine")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--json", type=Path, default=RESULTS / "kv-kills.json", help="write the figures to this file")
    parser.set_defaults(core=None, peers=PEERS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    begun = time.monotonic()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="duet-kills-", ignore_cleanup_errors=True) as root:
        try:
            if arguments.directory_kills:
                found["directory"] = vars(kill_writers(Path(root), arguments.directory_kills, arguments.seed))
            if arguments.engine_kills:
                found |= {name: vars(tally) for name, tally in kill_engines(Path(root), arguments.engine_kills).items()}
        except Broken as error:
            print(f"broken: {error}", file=sys.stderr)
            return 1
    found["landed"] = sum(tally["landed"] for tally in found.values())
    print(f"{found['landed']} kills landed inside a write; nothing was broken")
    write(arguments.json, arguments, begun, found)
    return 0


# A directory ---------------------------------------------------------------------------------------------------------


def kill_writers(root: Path, wanted: int, seed: int) -> Tally:
    """Raises `Broken`."""
    folder, tally, moments = root / "directory", Tally(), random.Random(seed)
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # a process of its own in milliseconds
    while tally.landed < wanted:
        tally.tried += 1
        if tally.tried > TRIES * wanted:
            raise Broken(f"only {tally.landed} of {tally.tried} kills landed inside a write")
        writer = context.Process(target=_fill, args=(folder, tally.tried * 1_000_000), daemon=True)
        writer.start()
        started, caught = time.monotonic(), False
        assert writer.pid is not None
        while not caught:
            if time.monotonic() - started > WRITE_SECONDS or not writer.is_alive():
                raise Broken("the writer wrote nothing")
            if half_written(folder):
                time.sleep(moments.uniform(0.0, LATEST_SECONDS))
                caught = _stopped([writer.pid], lambda: half_written(folder))
        writer.kill()
        writer.join()
        tally.landed += bool(half_written(folder))
        _check_directory(folder, tally)
        if tally.tried % 20 == 0:
            print(f"directory: {tally.landed} of {tally.tried} kills landed inside a write", flush=True)
    return tally


def _stopped(pids: Sequence[int], writing: Callable[[], set[Path]]) -> bool:
    """Stop processes if they are in the middle of a write; else they go on."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.001)  # each of its threads has to notice
    if writing():
        return True
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return False


def _fill(folder: Path, first: int) -> None:
    """Write files until killed, every other one with the pauses of a worker whose rows decode."""
    with contextlib.closing(Directory(folder, LIMITS, ABOUT)) as directory:
        for number in range(first, first + 1_000_000):
            tensor = blobs.Tensor("U8", (FILE_BYTES,), memoryview(_content(number)))
            pause = (lambda: time.sleep(BUSY_PAUSE_SECONDS)) if number % 2 else None
            directory.add(_entry(number), {"0.k": tensor}, {"number": str(number)}, pause=pause)


def _content(number: int) -> bytes:
    """32 bytes that no other file has, over and over: cheap, so that most of the writer's time is writing."""
    return hashlib.sha256(number.to_bytes(8, "little")).digest() * (FILE_BYTES // 32)


def _entry(number: int) -> Entry:
    tokens = number.to_bytes(8, "little")
    return Entry(hashlib.sha256(tokens).digest(), "block", b"root", 0, 2, tokens, (), 0, 1.0, False)


def _check_directory(folder: Path, tally: Tally) -> None:
    with contextlib.closing(Directory(folder, LIMITS, ABOUT)) as directory:
        directory.sweep()
        keys = directory.index.between(b"\0" * 32, b"\xff" * 32)
        files = {path for path in folder.glob("files/*/*") if path.is_file()}
        _must(not half_written(folder), "a sweep leaves a half-written file")
        _must(files == {directory.file(key) for key in keys}, "files and entries are not the same")
        _must(sum(path.stat().st_size for path in files) <= DIRECTORY_CAP, "the cap is not kept")
        for key in keys:
            found = directory.read(key)
            _must(found is not None, "a file with an entry is damaged")
            assert found is not None
            tensors, facts = found
            _must(bytes(tensors["0.k"].data) == _content(int(facts["number"])), "a file is not what was written")
        tally.count("files read", len(keys))


def half_written(folder: Path) -> set[Path]:
    """Files under their temporary names that are not empty. One that goes meanwhile is left out."""
    found = set()
    for path in folder.glob("files/*/.*"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size:
                found.add(path)
    return found


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


# A whole engine ------------------------------------------------------------------------------------------------------


def kill_engines(root: Path, wanted: int) -> dict[str, Tally]:
    """Two of three kills are the worker's: a third death in a row would make its model rest. Raises `Broken`."""
    folder, found = checkpoint("thick"), {"worker": Tally(), "engine": Tally()}
    texts, rounds, answers = Texts(folder), 0, set[tuple[float, ...]]()
    with contextlib.ExitStack() as stack:
        reference = Client(stack.enter_context(_server(root / "reference", folder, NOTHING)))
        client = Client(stack.enter_context(_server(root / "engine", folder, Budget(1 << 30, ENGINE_CAP))))
        client.warm_up()
        while (landed := sum(tally.landed for tally in found.values())) < wanted:
            _must(rounds < TRIES * wanted, f"only {landed} of {rounds} kills landed inside a write")
            rounds += 1
            kind = "worker" if rounds % 3 else "engine"
            begun, head, tally = time.monotonic(), texts.make(HEAD_TOKENS, f"round {rounds}"), found[kind]
            tally.tried += 1
            tally.landed += _kill_inside_a_write(client, head, whole=kind == "engine")
            client = _revived(client, restart=kind == "engine")
            answers.add(_check_answer(client, reference, head, rounds))
            _must(len(answers) == rounds, f"round {rounds}: the answer does not depend on the prompt")
            tally.count("answers equal to the reference")
            tally.count("files read", _check_home(client.server.home))
            print(
                f"{kind}: round {rounds} took {time.monotonic() - begun:.0f} s, {tally.landed} of {tally.tried} landed",
                flush=True,
            )
        client.close()
        reference.close()
        client.server.stop()
        _check_rest(client.server)
    return found


def _server(home: Path, folder: Path, budget: Budget) -> Server:
    server = Server("duet", home, folder, budget, core=None)
    settings = {"DUET_ENGINE__KV_FREE_BYTES": "0", "DUET_ENGINE__KV_FLUSH_SECONDS": "60"}
    server.recipe = replace(server.recipe, environment={**server.recipe.environment, **settings})
    return server


def _check_answer(client: Client, reference: Client, head: str, rounds: int) -> tuple[float, ...]:
    """The answer's log-probabilities, which are those of the reference. Raises `Broken`."""
    found, expected = (_answer(one, head, logprobs=True) for one in (client, reference))
    _must(found.text == expected.text, f"round {rounds}: another answer")
    _must(
        len(found.logprobs) == len(expected.logprobs) == ANSWER_TOKENS, f"round {rounds}: log-probabilities are missing"
    )
    noise = max(abs(one - other) for one, other in zip(found.logprobs, expected.logprobs, strict=True))
    _must(noise < LOGPROB_NOISE, f"round {rounds}: log-probabilities differ by {noise:.2g}")
    return expected.logprobs


def _answer(
    client: Client, head: str, tail: str = "What now?", *, tokens: int = ANSWER_TOKENS, logprobs: bool = False
) -> Answer:
    return client.ask([message("user", f"{head}\n\n{tail}")], max_tokens=tokens, logprobs=logprobs)


def _kill_inside_a_write(client: Client, head: str, *, whole: bool) -> bool:
    """Have the engine write, and kill it or its worker while it does. Returns whether the kill landed. Raises `Broken`."""
    home = client.server.home
    left = half_written_below(home)
    pids = _workers(client.server.pid)
    with _asking(client, head) as stopping:
        begun, last = time.monotonic(), math.inf
        while time.monotonic() < last + LAST_SECONDS:  # it has written all there was to write: this kill lands nowhere
            _must(last < math.inf or time.monotonic() - begun < WRITE_SECONDS, "the engine wrote nothing")
            if half_written_below(home) - left:
                last = time.monotonic()
                if _stopped(pids, lambda: half_written_below(home) - left):
                    break
        if whole:
            os.kill(client.server.pid, signal.SIGKILL)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        stopping.set()
    _wait_until_dead(pids)
    _must(not half_written_below(home) & left, "what an earlier kill left is still there when the next file is written")
    return bool(half_written_below(home) - left)


@contextlib.contextmanager
def _asking(client: Client, head: str) -> Iterator[threading.Event]:
    """Ask from another thread until told to stop: the second time a beginning is wanted, it is written."""
    stopping = threading.Event()

    def run() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            # The kill ends a request that is under way, however it likes.
            with contextlib.suppress(RequestFailed, httpx.HTTPError):
                _answer(client, head, f"Again {number}", tokens=LONG_ANSWER_TOKENS if number > 1 else 1)

    thread = threading.Thread(target=run, name="asking", daemon=True)
    thread.start()
    try:
        yield stopping
    finally:
        stopping.set()
        thread.join()


def _revived(client: Client, *, restart: bool) -> Client:
    """A client whose engine answers again. The gateway sees a worker's death in its own time."""
    client.close()
    if restart:
        client.server.restart()
    client, begun = Client(client.server), time.monotonic()
    while True:
        try:
            client.warm_up()
            return client
        except (RequestFailed, httpx.HTTPError) as error:
            _must(time.monotonic() - begun < WRITE_SECONDS, f"it does not answer again: {error}")
            time.sleep(0.1)


def _workers(gateway: int) -> list[int]:
    table = processes()
    parents = {pid: parent for pid, (parent, _, _) in table.items()}
    return [pid for pid in table if pid != gateway and descends(pid, gateway, parents) and "engine" in table[pid][2]]


def _wait_until_dead(pids: Sequence[int]) -> None:
    """A process whose parent was killed may stay in the table of processes, but not with memory."""
    begun = time.monotonic()
    while any(processes().get(pid, (0, 0.0, ""))[1] > 0 for pid in pids):
        _must(time.monotonic() - begun < WRITE_SECONDS, "a killed process lives on")


def half_written_below(home: Path) -> set[Path]:
    return {path for folder in (home / "kv").glob("*") for path in half_written(folder)}


def _check_home(home: Path) -> int:
    """Returns the number of files."""
    files = []
    for folder in directories(home / "kv"):
        _must(not [*damaged_files(folder)], "a file is damaged")
        files += [path for path in folder.glob("files/*/*") if path.is_file()]
    sizes = []
    for path in files:
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    _must(sum(sizes) <= ENGINE_CAP, f"{sum(sizes)} bytes of files: the cap is not kept")
    return len(files)


def _check_rest(server: Server) -> None:
    environment = {**os.environ, **server.recipe.environment}
    command = [sys.executable, "-P", "-m", "duet.cli.main", "kv", "verify"]
    verified = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(f"duet kv verify: {verified.stdout.strip()}")
    _must(verified.returncode == 0, f"duet kv verify: {verified.stdout}{verified.stderr}")
    for folder in directories(server.home / "kv"):
        with contextlib.closing(Directory(folder, Limits(ENGINE_CAP, 0, free_bytes=0), ABOUT)) as directory:
            _must(directory.sweep() == 0, "an orphan is left")


if __name__ == "__main__":
    sys.exit(main())
