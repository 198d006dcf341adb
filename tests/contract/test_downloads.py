"""Downloads against a hub on loopback: interrupted, resumed, damaged, disk full; never half a model served."""

from __future__ import annotations

import asyncio
import hashlib
import json
import resource
import signal
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from duet.errors import ModelNotFound, Unavailable
from engine.downloads import AT_ONCE, SPARE_BYTES, Downloads, is_complete
from engine.folders.inspection import inspect
from engine.transfer import TRIES_WITHOUT_A_BYTE
from tests.fakes.hub import COMMIT, FakeHub, running
from tests.folders import TOKENIZER, safetensors

REPO = "maker/model"
WEIGHTS = "model-00002-of-00002.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", WEIGHTS)


def model_files() -> dict[str, bytes]:
    """A repo of two shards, the second of 3 MB, and files that no model needs."""
    index = {"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}
    return {
        "config.json": b'{"model_type": "qwen3"}',
        "tokenizer.json": TOKENIZER.encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        SHARDS[0]: safetensors("a", bytes(range(256)) * 100),
        SHARDS[1]: safetensors("b", hashlib.shake_256(b"weights").digest((3 << 20) - 80)),  # with its header 3 MB
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
        "pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"for another program",
        "README.md": b"# words",
    }


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with running(FakeHub(repos={REPO: model_files()})) as hub:
        yield hub


@pytest.fixture
def downloads(hub: FakeHub, tmp_path: Path) -> Downloads:
    return make(hub, tmp_path)


def make(hub: FakeHub, cache: Path, **more: Any) -> Downloads:
    return Downloads(cache, hub.endpoint, **{"retry_seconds": 0.0, "free_bytes": lambda _: 1 << 40, **more})


def is_wanted(name: str) -> bool:
    return not name.startswith(("pytorch", "onnx", "README"))


def assert_whole(folder: Path) -> None:
    for name, data in model_files().items():
        if is_wanted(name):
            assert (folder / name).read_bytes() == data, name


async def test_a_repo_arrives_whole_and_is_found_afterwards(hub: FakeHub, downloads: Downloads, tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    folder = await downloads.fetch(REPO, on_progress=lambda done, total: progress.append((done, total)))
    assert_whole(folder)
    assert folder == tmp_path / "models--maker--model" / "snapshots" / COMMIT
    assert progress[0][0] == 0
    assert progress[-1][0] == progress[-1][1] > 3 << 20
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert downloads.local(REPO) == folder
    assert list(downloads.snapshots()) == [(REPO, folder)]
    assert not list(tmp_path.rglob("*.incomplete"))


async def test_only_what_a_model_needs_is_fetched_and_its_config_comes_last(hub: FakeHub, downloads: Downloads) -> None:
    await downloads.fetch(REPO)
    names = [entry.name for entry in hub.served]
    assert not {"pytorch_model.bin", "onnx/model.safetensors", "README.md"} & set(names)
    assert names[-1] == "config.json"


async def test_the_hub_s_library_finds_what_was_fetched(downloads: Downloads, tmp_path: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    folder = await downloads.fetch(REPO)
    assert try_to_load_from_cache(REPO, SHARDS[0], cache_dir=tmp_path) == str(folder / SHARDS[0])
    (repo,) = scan_cache_dir(tmp_path).repos
    assert repo.repo_id == REPO
    assert {revision.commit_hash for revision in repo.revisions} == {COMMIT}


async def test_what_a_fetched_model_can_do_is_told_by_its_repo_s_name_too(hub: FakeHub, downloads: Downloads) -> None:
    hub.repos = {"maker/Model-Embedding": model_files(), "maker/model": model_files()}
    del hub.repos["maker/Model-Embedding"]["1_Pooling/config.json"], hub.repos["maker/model"]["1_Pooling/config.json"]
    roles = {repo: inspect(await downloads.fetch(repo), repo).roles for repo in hub.repos}
    assert roles == {"maker/Model-Embedding": ("embedding",), "maker/model": ("completions",)}


async def test_a_model_that_is_here_asks_the_hub_nothing(hub: FakeHub, downloads: Downloads) -> None:
    await downloads.fetch(REPO)
    before = (hub.listed, len(hub.served))
    await downloads.fetch(REPO)
    assert (hub.listed, len(hub.served)) == before


async def test_a_broken_connection_goes_on_where_it_stopped(hub: FakeHub, downloads: Downloads) -> None:
    hub.cuts[WEIGHTS] = [1 << 20, 2 << 20]
    assert_whole(await downloads.fetch(REPO))
    served = hub.of(WEIGHTS)
    assert [entry.start for entry in served] == [0, 1 << 20, 2 << 20]
    assert sum(entry.sent for entry in served) == 3 << 20, "no byte was sent twice"


async def test_a_download_given_up_goes_on_in_another_process(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [2 << 20] + [0] * TRIES_WITHOUT_A_BYTE
    with pytest.raises(Unavailable, match="stopped after 2097152 of 3145728 bytes"):
        await make(hub, tmp_path).fetch(REPO)
    another = make(hub, tmp_path)
    assert another.local(REPO) is None, "half a model is no model"
    assert list(another.snapshots()) == []
    progress: list[int] = []
    assert_whole(await another.fetch(REPO, on_progress=lambda done, _: progress.append(done)))
    assert progress[0] > 2 << 20
    assert hub.of(WEIGHTS)[-1].start == 2 << 20
    assert sum(entry.sent for entry in hub.of(WEIGHTS)) == 3 << 20


async def test_a_killed_process_leaves_no_half_model_and_its_bytes_are_used(hub: FakeHub, tmp_path: Path) -> None:
    script = f"""
        import asyncio
        from pathlib import Path
        from engine.downloads import Downloads
        tell = lambda done, total: print(done, flush=True)
        downloads = Downloads(Path({str(tmp_path)!r}), {hub.endpoint!r}, free_bytes=lambda _: 1 << 40, retry_seconds=60)
        asyncio.run(downloads.fetch({REPO!r}, on_progress=tell))
    """
    hub.cuts[WEIGHTS] = [1 << 20, 0]  # then it waits for its next try
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    async for line in child.stdout:
        if int(line) > 1 << 20:
            break
    child.send_signal(signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL
    downloads = make(hub, tmp_path)
    assert downloads.local(REPO) is None
    hub.cuts.clear()
    assert_whole(await downloads.fetch(REPO))
    assert hub.of(WEIGHTS)[-1].start == 1 << 20


async def test_a_hub_without_ranges_starts_again_and_the_file_is_right(hub: FakeHub, downloads: Downloads) -> None:
    hub.ignores_ranges = True
    hub.cuts[WEIGHTS] = [1 << 20]
    progress: list[int] = []
    assert_whole(await downloads.fetch(REPO, on_progress=lambda done, _: progress.append(done)))
    assert max(progress) == progress[-1], "bytes that were thrown away are not counted"


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json"])
async def test_a_damaged_file_is_fetched_again_from_its_beginning(
    hub: FakeHub, downloads: Downloads, name: str
) -> None:
    hub.damages[name] = 1
    assert_whole(await downloads.fetch(REPO))
    assert [entry.start for entry in hub.of(name)] == [0, 0]


async def test_a_file_damaged_twice_is_an_error_and_nothing_of_it_stays(
    hub: FakeHub, downloads: Downloads, tmp_path: Path
) -> None:
    hub.damages[WEIGHTS] = 2
    with pytest.raises(Unavailable, match=f"{WEIGHTS} arrived damaged twice"):
        await downloads.fetch(REPO)
    assert downloads.local(REPO) is None
    assert not list(tmp_path.rglob("*.incomplete"))
    assert_whole(await downloads.fetch(REPO))


async def test_too_little_room_is_refused_with_numbers_before_a_byte_comes(hub: FakeHub, tmp_path: Path) -> None:
    needed = sum(len(data) for name, data in model_files().items() if is_wanted(name))
    tight = make(hub, tmp_path, free_bytes=lambda _: needed + SPARE_BYTES - 1)
    with pytest.raises(Unavailable, match=r"needs 0\.00 GB more.*must stay free.*are free in"):
        await tight.fetch(REPO)
    assert hub.served == []
    assert_whole(await make(hub, tmp_path, free_bytes=lambda _: needed + SPARE_BYTES).fetch(REPO))


async def test_room_is_asked_only_for_what_is_missing(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [2 << 20] + [0] * TRIES_WITHOUT_A_BYTE
    with pytest.raises(Unavailable):
        await make(hub, tmp_path).fetch(REPO)
    assert_whole(await make(hub, tmp_path, free_bytes=lambda _: SPARE_BYTES + (3 << 19)).fetch(REPO))


async def test_a_disk_that_fills_up_is_told_and_given_its_room_back(
    hub: FakeHub, downloads: Downloads, tmp_path: Path
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 << 20, hard))  # writing fails as on a full disk
    try:
        with pytest.raises(Unavailable, match="the disk became full"):
            await downloads.fetch(REPO)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.rglob("*.incomplete"))
    assert downloads.local(REPO) is None
    assert_whole(await downloads.fetch(REPO))


async def test_two_who_wait_share_one_download(hub: FakeHub, downloads: Downloads) -> None:
    hub.open_gate.clear()
    told: list[int] = []
    first = asyncio.create_task(downloads.fetch(REPO))
    second = asyncio.create_task(downloads.fetch(REPO, on_progress=lambda done, _: told.append(done)))
    await asyncio.sleep(0)
    hub.open_gate.set()
    assert await first == await second
    assert hub.listed == 1
    assert len({entry.name for entry in hub.served}) == len(hub.served)
    assert told[-1] > 3 << 20


async def test_two_processes_do_not_write_one_file(hub: FakeHub, tmp_path: Path) -> None:
    """Two services on one cache: the second waits for the first and takes what it brought."""
    folders = await asyncio.gather(make(hub, tmp_path).fetch(REPO), make(hub, tmp_path).fetch(REPO))
    assert_whole(folders[0])
    assert sum(entry.sent for entry in hub.of(WEIGHTS)) == 3 << 20


async def test_who_leaves_does_not_stop_the_download(hub: FakeHub, downloads: Downloads) -> None:
    hub.open_gate.clear()
    impatient = asyncio.create_task(downloads.fetch(REPO))
    await asyncio.sleep(0)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    patient = asyncio.create_task(downloads.fetch(REPO))
    hub.open_gate.set()
    assert_whole(await patient)
    assert hub.listed == 1


async def test_closing_interrupts_at_once_and_keeps_the_bytes(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts[WEIGHTS] = [1 << 20] + [0] * TRIES_WITHOUT_A_BYTE
    downloads = make(hub, tmp_path, retry_seconds=60.0)
    arrived = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(done: int, _: int) -> None:
        if done > 1 << 20:
            loop.call_soon_threadsafe(arrived.set)

    waiting = asyncio.create_task(downloads.fetch(REPO, on_progress=tell))
    await arrived.wait()
    async with asyncio.timeout(10):
        await downloads.close()
    with pytest.raises(Unavailable, match="goes down"):
        await waiting
    assert [path.stat().st_size for path in tmp_path.rglob("*.incomplete")] == [1 << 20]


@pytest.mark.parametrize(
    ("refusals", "error", "says"),
    [
        ({}, ModelNotFound, "the hub has no model maker/absent"),
        ({"maker/absent": 401}, Unavailable, "HTTP 401; set an HF_TOKEN that may read it"),
        ({"maker/absent": 500}, Unavailable, "HTTP 500"),
    ],
)
async def test_a_repo_that_the_hub_does_not_give_is_told_by_cause(
    hub: FakeHub, downloads: Downloads, refusals: dict[str, int], error: type[Exception], says: str
) -> None:
    hub.refusals.update(refusals)
    with pytest.raises(error, match=says):
        await downloads.fetch("maker/absent")


@pytest.mark.parametrize("status", [401, 403])
async def test_gated_files_say_what_to_do(hub: FakeHub, downloads: Downloads, status: int) -> None:
    hub.refusals[WEIGHTS] = status
    with pytest.raises(Unavailable, match=r"accept the model's terms there and set HF_TOKEN"):
        await downloads.fetch(REPO)
    assert downloads.local(REPO) is None


async def test_the_token_goes_to_the_hub_and_not_where_it_redirects(
    hub: FakeHub, downloads: Downloads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    await downloads.fetch(REPO)
    assert {entry.authorization for entry in hub.of("config.json")} == {"Bearer hf_secret"}
    assert {entry.authorization for entry in hub.of(WEIGHTS)} == {None}
    assert "hf_secret" not in caplog.text


async def test_a_hub_out_of_reach_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match=r"the hub at http://127\.0\.0\.1:9 "):
        await Downloads(tmp_path, "http://127.0.0.1:9", retry_seconds=0.0).fetch(REPO)


@pytest.mark.parametrize(
    "entry",
    [
        {"rfilename": "weights/../../../evil.json", "size": 2, "blobId": "0" * 40},
        {"rfilename": "/evil.json", "size": 2, "blobId": "0" * 40},
        {"rfilename": "evil.json", "size": 2, "blobId": "../../../evil"},
        {"rfilename": "evil.json", "size": 2},
        {"rfilename": "evil.json", "blobId": "0" * 40},
    ],
)
async def test_a_hostile_list_writes_nothing(
    hub: FakeHub, downloads: Downloads, tmp_path: Path, entry: dict[str, Any]
) -> None:
    hub.stray.append(entry)
    with pytest.raises(Unavailable, match="cannot be used"):
        await downloads.fetch(REPO)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


async def test_a_repo_without_readable_weights_is_no_model(hub: FakeHub, downloads: Downloads) -> None:
    hub.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(Unavailable, match="no weights that this engine reads"):
        await downloads.fetch(REPO)


@pytest.mark.parametrize(
    ("names", "complete"),
    [
        (("config.json", "model.safetensors"), True),
        (("config.json", "weights.safetensors"), True),
        (("model.safetensors",), False),
        (("config.json",), False),
        (("config.json", "model-00001-of-00002.safetensors"), False),
        (("config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"), True),
    ],
)
def test_a_snapshot_is_served_only_with_all_its_shards(tmp_path: Path, names: tuple[str, ...], complete: bool) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert is_complete(tmp_path) is complete


@pytest.mark.parametrize(
    "index", [b"{}", b"[]", b"no json", b'{"weight_map": {}}', b'{"weight_map": {"a": "gone.safetensors"}}']
)
def test_a_snapshot_whose_index_is_not_met_is_not_served(tmp_path: Path, index: bytes) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    assert not is_complete(tmp_path)


def test_a_snapshot_whose_blob_is_gone_is_not_served(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "nowhere")
    assert not is_complete(tmp_path)


async def test_slow_downloads_leave_threads_to_everything_else(
    downloads: Downloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, running, most = threading.Event(), set[int](), 0

    def fetch(key: tuple[str, str | None]) -> Path:
        nonlocal most
        running.add(threading.get_ident())
        most = max(most, len(running))
        assert slow.wait(20)
        running.discard(threading.get_ident())
        return Path(key[0])

    monkeypatch.setattr(downloads, "_fetch", fetch)
    repos = [f"maker/{number}" for number in range(40)]  # more than the default pool has threads
    fetching = [asyncio.create_task(downloads.fetch(repo)) for repo in repos]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        assert await asyncio.to_thread(threading.get_ident) not in running
    slow.set()
    assert await asyncio.gather(*fetching) == [Path(repo) for repo in repos]
    assert 0 < most <= AT_ONCE


async def test_a_download_that_waited_for_its_turn_ends_when_the_engine_does(hub: FakeHub, tmp_path: Path) -> None:
    downloads = make(hub, tmp_path)
    slow = threading.Event()
    for _ in range(AT_ONCE):
        downloads._threads.submit(slow.wait, 20)
    waiting = asyncio.create_task(downloads.fetch(REPO))
    await asyncio.sleep(0)
    closing = asyncio.create_task(downloads.close())
    await asyncio.sleep(0)
    slow.set()
    await closing
    with pytest.raises(Unavailable, match="goes down"):
        await waiting
    assert hub.of("config.json") == []
