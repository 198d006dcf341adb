"""What machines say of their memory, as it was recorded, and what follows from it."""

from __future__ import annotations

import os
import sys

import pytest

from engine.pressure import (
    SWAP_GROWTH_BYTES,
    SWAP_MEMORY_SECONDS,
    Outlook,
    Pressure,
    ProbeFailed,
    Reading,
    next_outlook,
    own_footprint_bytes,
    parse_meminfo,
    parse_stalls,
    parse_sysctl,
    parse_vm_stat,
    read_memory,
    rss_bytes,
    within_group,
)

MEMINFO = """\
MemTotal:       24684344 kB
MemFree:         9404444 kB
MemAvailable:   16013672 kB
Buffers:          342128 kB
SwapCached:            0 kB
SwapTotal:       2097148 kB
SwapFree:        1048572 kB
HugePages_Total:       0
"""
STALLS = """\
some avg10={some} avg60=1.20 avg300=0.31 total=1234567
full avg10={full} avg60=0.90 avg300=0.11 total=234567
"""
VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                4712.
Pages active:                            367871.
Pages inactive:                          364520.
Pages speculative:                         1860.
Pages throttled:                              0.
Pages wired down:                        118533.
Pages purgeable:                           5326.
"Translation faults":                 923479417.
Pages copy-on-write:                   32115621.
Pages stored in compressor:              591025.
Pages occupied by compressor:            145521.
Swapins:                                 441250.
Swapouts:                                658021.
"""
SYSCTL = """\
hw.memsize: 17179869184
vm.swapusage: total = 3072.00M  used = 2150.25M  free = 921.75M  (encrypted)
kern.memorystatus_vm_pressure_level: {level}
"""
GIB = 1 << 30


def test_meminfo() -> None:
    reading = parse_meminfo(MEMINFO)
    assert reading == Reading(24684344 * 1024, 16013672 * 1024, (2097148 - 1048572) * 1024)


def test_meminfo_of_a_kernel_that_does_not_say_what_is_available() -> None:
    with pytest.raises(ProbeFailed, match="MemAvailable"):
        parse_meminfo(MEMINFO.replace("MemAvailable", "MemOther"))


@pytest.mark.parametrize(
    ("some", "full", "pressure"),
    [
        ("0.00", "0.00", "normal"),
        ("9.99", "3.00", "normal"),
        ("12.00", "3.10", "warning"),
        ("40.00", "25.00", "critical"),
    ],
)
def test_stalls(some: str, full: str, pressure: Pressure) -> None:
    assert parse_stalls(STALLS.format(some=some, full=full)) == pressure


def test_stalls_that_are_something_else() -> None:
    with pytest.raises(ProbeFailed):
        parse_stalls("")


def test_vm_stat_counts_what_is_free_and_what_is_easy_to_get_back() -> None:
    assert parse_vm_stat(VM_STAT) == 16384 * (4712 + 364520 + 1860 + 5326)
    with pytest.raises(ProbeFailed):
        parse_vm_stat("vm_stat: command failed")


@pytest.mark.parametrize(("level", "pressure"), [(1, "normal"), (2, "warning"), (4, "critical"), (3, "normal")])
def test_sysctl(level: int, pressure: Pressure) -> None:
    assert parse_sysctl(SYSCTL.format(level=level)) == Reading(16 * GIB, 0, int(2150.25 * 1024**2), pressure)


def test_sysctl_without_a_pressure_level_is_normal_and_without_sizes_is_nothing() -> None:
    text = "\n".join(SYSCTL.splitlines()[:2])
    assert parse_sysctl(text).pressure == "normal"
    with pytest.raises(ProbeFailed):
        parse_sysctl("sysctl: unknown oid")


def test_a_control_group_sees_only_its_share() -> None:
    whole = Reading(64 * GIB, 50 * GIB)
    assert within_group(whole, "max\n", "12345\n") == whole
    assert within_group(whole, "", "") == whole
    assert within_group(whole, f"{8 * GIB}\n", f"{3 * GIB}\n") == Reading(8 * GIB, 5 * GIB)
    assert within_group(whole, str(GIB), str(2 * GIB)).available_bytes == 0


def outlook_after(*swap_used_bytes: int, pause_seconds: float = 2.0) -> Outlook:
    outlook = None
    for number, used in enumerate(swap_used_bytes):
        outlook = next_outlook(outlook, Reading(16 * GIB, 8 * GIB, used), 1000.0 + number * pause_seconds)
    assert outlook is not None
    return outlook


def test_swap_of_before_the_start_is_not_ours_but_what_comes_since_is_not_free() -> None:
    assert outlook_after(3 * GIB).available_bytes == 8 * GIB
    assert outlook_after(3 * GIB, 5 * GIB).available_bytes == 6 * GIB
    assert outlook_after(3 * GIB, 5 * GIB, 1 * GIB).available_bytes == 8 * GIB
    assert outlook_after(0, 20 * GIB).available_bytes == 0


def test_swap_that_stays_is_forgiven() -> None:
    """Cold pages of other programs stay swapped out for days; they must not keep a model out for so long."""
    assert outlook_after(0, 6 * GIB, *[6 * GIB] * 30).available_bytes == 2 * GIB
    looks = round(SWAP_MEMORY_SECONDS / 2) + 1
    assert outlook_after(0, *[6 * GIB] * looks).available_bytes == 8 * GIB
    assert outlook_after(0, 6 * GIB, 7 * GIB, pause_seconds=SWAP_MEMORY_SECONDS).available_bytes == 7 * GIB


def test_swap_that_grows_fast_is_a_warning_though_memory_looks_free() -> None:
    assert outlook_after(0, SWAP_GROWTH_BYTES // 2, SWAP_GROWTH_BYTES).pressure == "warning"
    assert outlook_after(0, *[SWAP_GROWTH_BYTES] * 4).pressure == "normal", "it stopped"
    assert outlook_after(0, SWAP_GROWTH_BYTES, pause_seconds=60.0).pressure == "normal", "it is slow"


def test_how_often_is_looked_says_nothing_about_growth() -> None:
    """Every load that waits looks too."""
    steps = [size * SWAP_GROWTH_BYTES // 100 for size in range(101)]
    outlook = outlook_after(*steps, pause_seconds=0.03)
    assert outlook.pressure == "warning"
    assert len(outlook.swaps) <= 4


def test_the_systems_own_word_is_kept() -> None:
    first = next_outlook(None, Reading(16 * GIB, 8 * GIB, 0, "critical"), 1.0)
    assert first.pressure == "critical"
    assert next_outlook(first, Reading(16 * GIB, 8 * GIB, GIB, "critical"), 2.0).pressure == "critical"


def test_this_machine_can_be_read() -> None:
    reading = read_memory()
    assert 0 < reading.available_bytes <= reading.total_bytes


def test_this_process_has_a_footprint_that_grows_with_what_it_holds() -> None:
    before = own_footprint_bytes()
    held = bytearray(os.urandom(1 << 20) * 64)
    assert own_footprint_bytes() - before > 48 << 20
    assert len(held) == 64 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_process_that_is_not_there_holds_nothing() -> None:
    assert rss_bytes(os.getpid()) > 0
    assert rss_bytes(2**22 + 1) == 0
