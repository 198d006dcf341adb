"""Kill processes (`kill -9`) in the middle of KV cache writes. Half-written files prove that the kills landed.

    make stress-kv        (python -m tests.stress.kv_kills [--directory-kills N] [--engine-kills N])

A kill counts if the file that was being written still exists after the process is dead: not empty, under its temporary
name. To make most kills count, the process is first stopped (SIGSTOP) at a random moment; if there is no such file
then, it continues. There are two levels:

- `directory`: a process fills one KV directory and is killed at a random moment after such a file appeared. Then the
  directory is opened again: it must keep its cap, entries and files must match, and every file must have the content
  that was written.
- `worker` and `engine`: `python -m engine` serves the checkpoint `thick` and gets the same beginning of a prompt again
  and again. While it writes that beginning to disk, its worker or the whole engine is killed. Its greedy answer
  afterwards must equal that of an engine without any cache, word for word and in its log-probabilities, and another
  beginning must get another answer. No file may be damaged, the cap must hold, and the remains of one kill must be gone
  by the next.

At the end the engine stops, `duet kv verify` must find nothing, and a sweep must find no orphan. If any check fails,
the run ends with exit code 1.
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
from benchmarks.kv.servers import NO_CACHE, PEERS, Budget, Server
from engine.kvstore import blobs
from engine.kvstore.directory import Directory, Limits
from engine.kvstore.index import Entry
from engine.kvstore.survey import damaged_files, directories
from engine.worker.kvcache.io_thread import BUSY_PAUSE_SECONDS

ABOUT = {"model": "kills"}
FILE_BYTES, DIRECTORY_CAP = 5 << 20, 21 << 20
LIMITS = Limits(DIRECTORY_CAP, write_bytes_a_day=1 << 50, free_bytes=0)
LONGEST_DELAY_SECONDS = 0.003
"""The longest wait between the appearance of a file and the kill. Writing a file takes about as long."""
HEAD_TOKENS, ANSWER_TOKENS = 300, 8
LONG_ANSWER_TOKENS = 300
"""While rows decode, files are written in pieces with pauses: enough time to see a file and kill the process."""
ENGINE_CAP = 240_000_000
"""The model's lease is half of it, nine files: every few rounds entries must be evicted."""
WRITE_SECONDS, QUIET_SECONDS, TRIES = 60.0, 3.0, 4
LOGPROB_NOISE = 1e-3
"""The largest difference between two float32 runs in other chunks. A misplaced KV block causes far more."""


class Broken(Exception):
    """A check failed. The message says which one."""


@dataclass
class Tally:
    """Kills of one kind: how many landed inside a write, how many were tried, and what was checked after them."""

    landed: int = 0
    tried: int = 0
    checked: dict[str, int] = field(default_factory=dict)

    def count(self, what: str, number: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory-kills", type=int, default=176, help="kills of a process that fills a directory")
    parser.add_argument("--engine-kills", type=int, default=24, help="kills of a worker or a whole engine")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
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
    """Kill processes that fill a directory until `wanted` kills landed. Raises `Broken`."""
    folder, tally, moments = root / "directory", Tally(), random.Random(seed)
    folder.mkdir()
    context = multiprocessing.get_context("fork")  # starts a process in milliseconds
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
                time.sleep(moments.uniform(0.0, LONGEST_DELAY_SECONDS))
                caught = _stopped([writer.pid], lambda: half_written(folder))
        writer.kill()
        writer.join()
        tally.landed += bool(half_written(folder))
        _check_directory(folder, tally)
        if tally.tried % 20 == 0:
            print(f"directory: {tally.landed} of {tally.tried} kills landed inside a write", flush=True)
    return tally


def _stopped(pids: Sequence[int], writing: Callable[[], set[Path]]) -> bool:
    """Stop processes if they are in the middle of a write, else let them continue. Returns whether they are stopped."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(0.001)  # until every thread has stopped
    if writing():
        return True
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    return False


def _fill(folder: Path, first: int) -> None:
    """Write files until killed. Every other file has the pauses that a worker makes while its rows decode."""
    with contextlib.closing(Directory(folder, LIMITS, ABOUT)) as directory:
        for number in range(first, first + 1_000_000):
            tensor = blobs.Tensor("U8", (FILE_BYTES,), memoryview(_content(number)))
            pause = (lambda: time.sleep(BUSY_PAUSE_SECONDS)) if number % 2 else None
            directory.add(_entry(number), {"0.k": tensor}, {"number": str(number)}, pause=pause)


def _content(number: int) -> bytes:
    """32 bytes that no other file has, repeated. This is cheap to make, so the writer spends most of its time writing."""
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
    """Files under their temporary names that are not empty. A file that disappears meanwhile is left out."""
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
    """Kill workers and engines until `wanted` kills landed. Every third kill hits the engine, because after a third
    death in a row of its worker the engine would pause the model. Raises `Broken`."""
    folder, found = checkpoint("thick"), {"worker": Tally(), "engine": Tally()}
    texts, rounds, answers = Texts(folder), 0, set[tuple[float, ...]]()
    with contextlib.ExitStack() as stack:
        reference = Client(stack.enter_context(_server(root / "reference", folder, NO_CACHE)))
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
    """The reference's log-probabilities, after a comparison with the client's answer. Raises `Broken`."""
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
    """Make the engine write, and kill it or its worker meanwhile. Returns whether the kill landed. Raises `Broken`."""
    home = client.server.home
    left = half_written_below(home)
    pids = _workers(client.server.pid)
    with _asking(client, head) as stopping:
        begun, last = time.monotonic(), math.inf
        while time.monotonic() < last + QUIET_SECONDS:  # afterwards nothing is left to write and the kill does not land
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
    """Send requests from another thread until the event is set. The engine writes a beginning at its second request."""
    stopping = threading.Event()

    def run() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            # The kill may end a running request with any error.
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
    """A client whose engine answers again. Retries, because the gateway may notice a worker's death late."""
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
    """Wait until no process has memory. After its parent's death a dead process may stay in the process table."""
    begun = time.monotonic()
    while any(processes().get(pid, (0, 0.0, ""))[1] > 0 for pid in pids):
        _must(time.monotonic() - begun < WRITE_SECONDS, "a killed process lives on")


def half_written_below(home: Path) -> set[Path]:
    return {path for folder in (home / "kv").glob("*") for path in half_written(folder)}


def _check_home(home: Path) -> int:
    """Check all files below a home. Returns their number. Raises `Broken`."""
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
