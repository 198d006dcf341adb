"""A real engine whose KV folder goes wrong, before its start or under it: the right answers, no refusal, the cap kept."""

from __future__ import annotations

import itertools
import math
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from tests import checkpoints
from tests.e2e.test_engine_openai import Gateway
from tests.e2e.test_kv import ask, duet, engine, get

pytestmark = pytest.mark.e2e

KIND = "hybrid"  # blocks and checkpoints
CAP = 4_000_000
TAILS = ("one", "two", "three")
NEAR, APART = 1e-4, 1e-3
"""Log-probabilities of the same prompt differ by the noise of chunking only; those of another prompt by more."""

Said = tuple[str, tuple[float, ...]]
"""A greedy answer and the log-probabilities of its tokens, which tell prompts apart that are answered with the same text."""


def say(gateway: Gateway, tail: str) -> tuple[httpx.Response, Said, int]:
    """The answer, what it says, and the prompt tokens that were restored."""
    answer, text, cached = ask(gateway, tail, model=KIND, logprobs=True)
    content = answer.json()["choices"][0]["logprobs"]["content"]
    return answer, (text, tuple(token["logprob"] for token in content)), cached


def farthest(one: Said, other: Said) -> float:
    """The largest difference of their log-probabilities; infinite for different texts."""
    return max(abs(a - b) for a, b in zip(one[1], other[1], strict=True)) if one[0] == other[0] else math.inf


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of models: one whose greedy answers depend on the whole prompt."""
    found = tmp_path_factory.mktemp("models")
    checkpoints.write(KIND, found / KIND)
    return found


@pytest.fixture(scope="module")
def expected(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Said]:
    """Answers of an engine that keeps nothing."""
    with engine(
        tmp_path_factory.mktemp("reference"), DUET_ENGINE__MODEL_DIRS=str(folder), DUET_ENGINE__KV_RAM_BYTES="0"
    ) as gateway:
        found = {tail: say(gateway, tail) for tail in TAILS}
    assert {cached for _, _, cached in found.values()} == {0}
    said = {tail: one for tail, (_, one, _) in found.items()}
    assert min(farthest(said[a], said[b]) for a, b in itertools.combinations(TAILS, 2)) > APART
    return said


@pytest.fixture
def running(folder: Path, tmp_path: Path, expected: dict[str, Said]) -> Callable[..., AbstractContextManager[Gateway]]:
    """An engine on one home: started again, it finds what lies there. After its end the cap is kept."""

    @contextmanager
    def started(**settings: str) -> Iterator[Gateway]:
        options = {"DUET_ENGINE__MODEL_DIRS": str(folder), "DUET_ENGINE__KV_DISK_BYTES": str(CAP)}
        with engine(tmp_path, **options, **settings) as gateway:
            yield gateway
        assert sum(path.stat().st_size for path in kept(tmp_path)) <= CAP

    return started


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB in the place of the KV folder: a model's files, half of the cap, leave room on it."""
    place = tmp_path / "kv"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root on Linux only")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def kept(home: Path) -> list[Path]:
    """Files of KV, also half-written ones."""
    return [path for path in home.glob("kv/*/files/*/*") if path.is_file()]


def all_right(gateway: Gateway, expected: dict[str, Said], tails: tuple[str, ...] = TAILS) -> int:
    """Every answer is the reference's. Returns the prompt tokens that were restored."""
    restored = 0
    for tail in tails:
        _, said, cached = say(gateway, tail)
        assert farthest(said, expected[tail]) < NEAR, tail
        restored += cached
    return restored


def off(gateway: Gateway) -> str:
    """Why the worker keeps nothing on SSD, or ""."""
    return str(get(gateway, "/v1/admin/kv").json()["workers"][KIND].get("off", ""))


def until_written(home: Path) -> None:
    """Until a file is there, and no file is being written."""
    deadline = time.monotonic() + 60
    while not kept(home) or any(path.name.startswith(".") for path in kept(home)):
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.02)


def until_restored(gateway: Gateway, expected: dict[str, Said]) -> None:
    """Until the first prompt's beginning is found, which an engine without memory for KV reads from files. Each answer is the
    reference's: what is missing is written for the next one."""
    deadline = time.monotonic() + 60
    while not all_right(gateway, expected, ("one",)):
        assert time.monotonic() < deadline, "nothing was written that could be restored"


def harm_all(home: Path, harm: Callable[[Path], None]) -> None:
    """Every whole file: one that is still being written gets its name any moment, and harm would miss it."""
    for path in kept(home):
        if not path.name.startswith("."):
            harm(path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[random.Random(path.name).randrange(len(data))] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [empty, cut, flip])
def test_harmed_files_are_misses_under_a_running_engine_and_at_its_start(
    running: Callable[..., AbstractContextManager[Gateway]],
    expected: dict[str, Said],
    tmp_path: Path,
    harm: Callable[[Path], None],
) -> None:
    nothing_in_memory = {"DUET_ENGINE__KV_RAM_BYTES": "1"}
    with running(**nothing_in_memory) as gateway:
        all_right(gateway, expected)
        until_restored(gateway, expected)
        harm_all(tmp_path, harm)
        answer, said, cached = say(gateway, "one")
        assert farthest(said, expected["one"]) < NEAR
        assert cached == 0
        assert "miss=corrupt" in answer.headers["X-Duet-Cache"]
        all_right(gateway, expected)
    harm_all(tmp_path, harm)
    with running(**nothing_in_memory) as gateway:
        assert all_right(gateway, expected, ("one",)) == 0
        all_right(gateway, expected)


def test_an_index_that_is_damaged_under_the_engine_and_before_its_start_begins_anew(
    running: Callable[..., AbstractContextManager[Gateway]], expected: dict[str, Said], tmp_path: Path
) -> None:
    with running(DUET_ENGINE__KV_RAM_BYTES="1") as gateway:
        all_right(gateway, expected)
        until_written(tmp_path)
        for path in tmp_path.glob("kv/*/index.sqlite*"):
            with path.open("r+b") as file:
                file.write(random.Random(1).randbytes(path.stat().st_size))
        all_right(gateway, expected)
        all_right(gateway, expected)
    for path in tmp_path.glob("kv/*/index.sqlite*"):
        path.write_bytes(random.Random(2).randbytes(20_000))
    with running() as gateway:
        assert all_right(gateway, expected, ("one",)) == 0
        assert all_right(gateway, expected) > 0
        assert off(gateway) == ""
    assert duet(tmp_path, gateway.url, "kv", "verify").returncode == 0
    with running() as gateway:
        assert all_right(gateway, expected, ("one",)) > 0


def test_a_folder_that_is_removed_under_the_engine_costs_only_what_was_in_it(
    running: Callable[..., AbstractContextManager[Gateway]], expected: dict[str, Said], tmp_path: Path
) -> None:
    with running(DUET_ENGINE__KV_RAM_BYTES="1") as gateway:
        all_right(gateway, expected)
        until_written(tmp_path)
        # All at once: while one file after the other goes, new ones come, and a folder that is not empty stays.
        shutil.rmtree((tmp_path / "kv").rename(tmp_path / "gone"))
        all_right(gateway, expected)
        all_right(gateway, expected)
    with running() as gateway:
        all_right(gateway, expected)
        assert off(gateway) == ""
    with running() as gateway:
        assert all_right(gateway, expected, ("one",)) > 0


def test_a_file_in_the_place_of_the_folder_leaves_memory_only(
    running: Callable[..., AbstractContextManager[Gateway]], expected: dict[str, Said], tmp_path: Path
) -> None:
    (tmp_path / "kv").write_text("")
    with running() as gateway:
        all_right(gateway, expected)
        assert all_right(gateway, expected) > 0
        assert "cannot be used" in off(gateway)


def test_a_read_only_disk_leaves_memory_only(
    running: Callable[..., AbstractContextManager[Gateway]], expected: dict[str, Said], tmp_path: Path, small_disk: Path
) -> None:
    with running() as gateway:
        all_right(gateway, expected, ("one",))
    before = kept(tmp_path)
    assert before
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with running() as gateway:
        all_right(gateway, expected)
        assert all_right(gateway, expected) > 0
        assert "Read-only" in off(gateway)
    assert kept(tmp_path) == before


def test_a_full_disk_is_no_failure(
    running: Callable[..., AbstractContextManager[Gateway]], expected: dict[str, Said], tmp_path: Path, small_disk: Path
) -> None:
    with running(DUET_ENGINE__KV_RAM_BYTES="1") as gateway:
        all_right(gateway, expected)
        until_written(tmp_path)
        with (small_disk / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while file.write(bytes(4096)):
                pass
        all_right(gateway, expected)
        all_right(gateway, expected)
    with running() as gateway:
        all_right(gateway, expected)
        assert all_right(gateway, expected) > 0
    (small_disk / "filler").unlink()
    with running() as gateway:
        all_right(gateway, expected)
    with running() as gateway:
        assert all_right(gateway, expected, ("one",)) > 0
    assert duet(tmp_path, gateway.url, "kv", "verify").returncode == 0
