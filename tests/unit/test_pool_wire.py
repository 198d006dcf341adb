"""The fields of `/v1/admin/models` and `/v1/admin/kv`, by name: clients read them, whatever the code calls them."""

from __future__ import annotations

import msgspec

from engine.types import BatchReport, KvDirectory, KvReport, KvStatus, MemoryReport, Placement, PoolStatus

PLACEMENT = Placement(
    id="m", state="loaded", pinned=True, resident=False, estimate_bytes=1, charged_bytes=2, memory_bytes=3,
    memory=MemoryReport(active_bytes=4, cache_bytes=5, peak_bytes=6, footprint_bytes=7, working_set_bytes=8), ttl_seconds=9.0,
    idle_seconds=None, loaded_seconds=10.0, running=11, waiting=12,
    batch=BatchReport(rows=13, waiting=14, kv_tokens=15, kv_tokens_bound=16, preemptions=17), loads=18, crashes=19,
    rests_seconds=20.0, unloads={"idle": 21}, pid=22, problem="why",
)  # fmt: skip
PLACEMENT_JSON = (
    '{"id":"m","state":"loaded","pinned":true,"resident":false,"estimate_bytes":1,"charged_bytes":2,"memory_bytes":3,'
    '"memory":{"type":"memory","active_bytes":4,"cache_bytes":5,"peak_bytes":6,"footprint_bytes":7,"working_set_bytes":8},'
    '"ttl_seconds":9.0,"idle_seconds":null,"loaded_seconds":10.0,"running":11,"waiting":12,'
    '"batch":{"type":"batch","rows":13,"waiting":14,"kv_tokens":15,"kv_tokens_bound":16,"preemptions":17},'
    '"loads":18,"crashes":19,"rests_seconds":20.0,"unloads":{"idle":21},"pid":22,"problem":"why"}'
)


def said(value: msgspec.Struct) -> str:
    return msgspec.json.encode(value).decode()


def test_a_place_in_the_pool() -> None:
    assert said(PLACEMENT) == PLACEMENT_JSON


def test_the_pool() -> None:
    status = PoolStatus(
        preset="64gb", limit_bytes=1, ceiling_bytes=2, ceiling="its preset's share", charged_bytes=3, resident_bytes=4,
        available_bytes=5, swap_used_bytes=6, pressure="normal", waiting_for_memory=7, refused=8, spare=True,
        models=(PLACEMENT,),
    )  # fmt: skip
    assert said(status) == (
        '{"preset":"64gb","limit_bytes":1,"ceiling_bytes":2,"ceiling":"its preset\'s share","charged_bytes":3,"held_bytes":4,'
        '"available_bytes":5,"swap_used_bytes":6,"pressure":"normal","waiting_for_memory":7,"refused":8,"spare":true,'
        f'"models":[{PLACEMENT_JSON}]}}'
    )


def test_kv() -> None:
    directory = KvDirectory("d", "m", owned=True, bytes=1, entries=2, written_today=3)
    report = KvReport(
        memory_bytes=1, memory_entries=2, disk_bytes=3, disk_entries=4, written_today=5, read_bytes=6, written_bytes=7, prompts=8,
        restored_tokens=9, checkpoints=10, refused=11, corrupt=12, spilled_away=13, off="why",
    )  # fmt: skip
    assert said(KvStatus(1, 2, (directory,), {"m": report})) == (
        '{"disk_bytes_cap":1,"write_bytes_a_day_cap":2,'
        '"directories":[{"name":"d","model":"m","owned":true,"bytes":1,"entries":2,"written_today":3}],'
        '"workers":{"m":{"type":"kv","memory_bytes":1,"memory_entries":2,"disk_bytes":3,"disk_entries":4,"written_today":5,'
        '"read_bytes":6,"written_bytes":7,"prompts":8,"restored_tokens":9,"checkpoints":10,"refused":11,"corrupt":12,'
        '"spilled_away":13,"off":"why"}}}'
    )
