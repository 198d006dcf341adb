"""The arithmetic of the cache's benchmarks, against cases counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kv.agents import share, turns_of, unique_bytes, worst_excess
from benchmarks.kv.checkpoints import CONFIGS, is_plain, state_bytes, token_bytes
from benchmarks.kv.client import Answer, event_text, read_event
from benchmarks.kv.disk import (
    FileState,
    WriteLedger,
    drop_from_page_cache,
    files_below,
    sequential_read,
    written_between,
)
from benchmarks.kv.prefix import PHASES, against_peers, budget_for, figures, rotated
from benchmarks.kv.report import peer_versions, table
from benchmarks.kv.restore import summary


def answer(seconds: float = 1.0, prompt: int = 100, cached: int = 0) -> Answer:
    return Answer("text", seconds, prompt, cached, 8)


@pytest.mark.parametrize(
    ("name", "a_token", "a_state"),
    [
        ("nano", 4 * 2 * 2 * 32 * 4, 0),
        # Two of eight layers have keys and values; six have three inputs of 256 channels, and four matrices of 32 by 32.
        ("hybrid", 2 * 2 * 2 * 64 * 4, 6 * (3 * 256 + 4 * 32 * 32) * 4),
        ("wide", 16 * 2 * 6 * 256 * 4, 0),
    ],
)
def test_sizes_of_caches_follow_from_the_configuration(name: str, a_token: int, a_state: int) -> None:
    assert token_bytes(CONFIGS[name]) == a_token
    assert state_bytes(CONFIGS[name]) == a_state


def test_the_wide_checkpoint_keeps_200_megabytes_in_1024_tokens() -> None:
    assert 200e6 < 1024 * token_bytes(CONFIGS["wide"]) < 205e6


def test_a_sessions_unique_bytes_are_its_tokens_and_one_state() -> None:
    assert unique_bytes(1000, CONFIGS["nano"]) == 1000 * 2048
    assert unique_bytes(1000, CONFIGS["hybrid"]) == 1000 * 2048 + state_bytes(CONFIGS["hybrid"])


def test_memory_is_for_four_prefixes_and_not_for_six_more() -> None:
    held = budget_for(CONFIGS["nano"], 2048).ram_bytes / (2048 * token_bytes(CONFIGS["nano"]))
    assert 4 < held < 5


@pytest.mark.parametrize(
    ("text", "plain"), [(" value", True), ("", False), ("\n", False), ("é", False), ("<a", False), ("``", False)]
)
def test_only_plain_text_may_be_answered(text: str, plain: bool) -> None:
    assert is_plain(text) == plain


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", None),
        (": keep-alive", None),
        ("event: message", None),
        ("data: [DONE]", None),
        ('data: {"a": 1}', {"a": 1}),
        ('data:{"a": 1}', {"a": 1}),
    ],
)
def test_events_are_read_and_comments_are_not(line: str, expected: dict[str, int] | None) -> None:
    assert read_event(line) == expected


def test_text_is_what_is_said_or_thought_and_not_the_role() -> None:
    assert event_text({"choices": [{"delta": {"role": "assistant", "content": ""}}]}) == ""
    assert event_text({"choices": [{"delta": {"content": None, "reasoning_content": "hm"}}]}) == "hm"
    assert event_text({"choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}) == "ab"
    assert event_text({"choices": [], "usage": {}}) == ""


def test_ratios_are_of_each_prefix_to_its_own_cold_request() -> None:
    phases = {"cold": [answer(1.0), answer(4.0), answer(2.0)], "second": [answer(0.5), answer(0.4), answer(0.4)]}
    found = figures(phases)["phases"]
    assert found["cold"]["ratio"] == 1.0
    assert (found["second"]["seconds"], found["second"]["ratio"]) == (0.4, 0.2)


def test_we_are_compared_with_the_better_other_server_of_each_phase() -> None:
    def server(cold: float, second: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"phases": {"cold": {"seconds": cold}, "second": {"seconds": second}}}

    servers = {"duet": server(2.0, 0.1), "mlx_vlm": server(4.0, 0.4), "mlx_lm": server(5.0, 0.05)}
    assert against_peers(servers) == {"cold": 0.5, "second": 2.0}
    assert against_peers({"duet": server(1.0, 1.0)}) == {}


def test_each_server_begins_in_turn() -> None:
    assert [rotated(["a", "b", "c"], turn)[0] for turn in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated(["a", "b", "c"], 2)) == ["a", "b", "c"]
    assert PHASES[0] == "cold"


def test_a_share_counts_only_what_requests_have_in_common() -> None:
    assert share(answer(cached=950), 1000) == 0.95
    assert share(answer(cached=1010), 1000) == 1.0
    assert share(answer(cached=0), 1000) == 0.0


def test_a_turn_has_the_answer_before_it_with_its_header() -> None:
    # The second prompt: the first one's 100 tokens, of which 3 begin the answer, then 20 of the answer, 30 of the message.
    turns = turns_of([answer(prompt=100), answer(prompt=150, cached=97), answer(prompt=200, cached=100)], 3)
    assert [turn["last_turn_tokens"] for turn in turns] == [100, 53, 53]
    assert [turn["recomputed_tokens"] for turn in turns] == [100, 53, 100]
    assert worst_excess(turns) == 47
    assert worst_excess(turns[:2]) == 0


def test_a_renamed_file_is_written_once_and_a_replaced_one_again() -> None:
    before = {
        1: FileState("x.part", 10, 1),
        2: FileState("y", 10, 1),
        3: FileState("log", 10, 1),
        4: FileState("same", 7, 1),
    }
    after = {
        1: FileState("x", 10, 1),
        2: FileState("z", 10, 2),
        3: FileState("log", 15, 2),
        4: FileState("same", 7, 1),
        5: FileState("new", 3, 2),
    }
    assert written_between(before, after) == 0 + 10 + 5 + 0 + 3
    assert written_between({1: FileState("x", 10, 1)}, {1: FileState("x", 4, 2)}) == 4
    assert written_between(before, {}) == 0


def test_the_ledger_counts_files_that_come_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "before").write_bytes(b"-" * 50)
    with WriteLedger(tmp_path) as ledger:
        (tmp_path / "folder").mkdir()
        part = tmp_path / "folder" / "a.part"
        part.write_bytes(b"-" * 1000)
        part.rename(tmp_path / "folder" / "a")
    assert ledger.written_bytes == 1000


def test_a_sequential_read_reads_all(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"-" * 3_000_000)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c").write_bytes(b"-" * 17)
    files = files_below(tmp_path)
    drop_from_page_cache(files)
    count, seconds = sequential_read(files)
    assert count == 3_000_017
    assert seconds > 0


def restored(disk_seconds: float, memory_seconds: float, tokens: int = 10, read_bytes: int = 400) -> dict[str, float]:
    return {
        "dropped": True, "read_bytes": read_bytes, "read_seconds": 2.0, "disk_seconds": disk_seconds,
        "memory_seconds": memory_seconds, "own_memory_seconds": 2.0, "disk_tokens": tokens, "memory_tokens": tokens,
    }  # fmt: skip


def test_throughput_is_of_the_time_beyond_that_from_memory() -> None:
    found = summary([restored(3.0, 1.0), restored(4.0, 1.5), restored(2.5, 1.0)], bytes_a_token=20)
    assert (found["restored_bytes"], found["floor_bytes_per_second"], found["restore_bytes_per_second"]) == (
        200,
        200,
        100,
    )
    assert (found["restore_seconds"], found["of_floor"], found["gross_of_floor"]) == (2.0, 0.5, 0.333)


@pytest.mark.parametrize("run", [restored(3.0, 1.0, tokens=0), restored(1.0, 1.0)])
def test_without_a_restore_there_is_no_throughput(run: dict[str, float]) -> None:
    found = summary([run], bytes_a_token=20)
    assert found["restore_bytes_per_second"] is None
    assert found["of_floor"] is None


def test_without_files_there_is_no_floor() -> None:
    found = summary([restored(3.0, 1.0, read_bytes=0)], bytes_a_token=20)
    assert found["floor_bytes_per_second"] is None
    assert found["of_floor"] is None


def test_versions_come_from_the_records_of_an_environment(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.12" / "site-packages"
    for name in ("mlx_lm-0.32.2.dist-info", "mlx-0.32.4.dist-info", "numpy-2.4.dist-info"):
        (packages / name).mkdir(parents=True)
    assert peer_versions(tmp_path) == {"mlx": "0.32.4", "mlx_lm": "0.32.2"}


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(["server", "s"], [["a", "1.0"]]) == "server    s\na       1.0"
