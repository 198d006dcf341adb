"""The machine's memory: how much is free, how short it is, and what a process takes. The only place that asks the system.

Each source has a parser of its own, a pure function of its text. `read_memory` fetches the texts. Free memory alone is not
enough: a machine that swaps can show much of it. So swap and the system's own pressure level are read too."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

logger = logging.getLogger(__name__)

Pressure = Literal["normal", "warning", "critical"]
"""warning: the system reclaims memory, and work is slower; critical: work stalls."""

MACOS_LEVELS: Final[dict[int, Pressure]] = {1: "normal", 2: "warning", 4: "critical"}
"""Values of `kern.memorystatus_vm_pressure_level`, numbered as dispatch's DISPATCH_MEMORYPRESSURE_*."""
STALL_WARNING_PERCENT: Final = 10.0
STALL_CRITICAL_PERCENT: Final = 10.0
"""Percent of the last ten seconds in which some tasks (warning) or all tasks (critical) waited for memory (Linux's PSI)."""
SWAP_GROWTH_BYTES: Final = 256 << 20
SWAP_GROWTH_SECONDS: Final = 5.0
"""Swap that grows by this much within this time means that programs want more memory than the machine has."""
SWAP_MEMORY_SECONDS: Final = 120.0
"""Swap that has stayed for longer is cold: no program asks for it back, and macOS leaves it there for days."""
SWAP_SAMPLE_SECONDS: Final = 1.0
"""Readings that are closer together share one sample of the swap, because many loads may wait and read at once."""
PROBE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine's memory at one moment. `available_bytes` can be taken without swapping, by the system's own estimate."""

    total_bytes: int
    available_bytes: int
    swap_used_bytes: int = 0
    pressure: Pressure = "normal"


class ProbeFailed(Exception):
    """A source is missing, or its text is not what we know. The message names the source."""


# Linux ----------------------------------------------------------------------------------------------------------------


def parse_meminfo(text: str) -> Reading:
    """`/proc/meminfo` (proc(5)). Raises `ProbeFailed`."""
    found = {name: int(kilobytes) * 1024 for name, kilobytes in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    try:
        swap = found.get("SwapTotal", 0) - found.get("SwapFree", 0)
        return Reading(found["MemTotal"], found["MemAvailable"], swap)
    except KeyError as error:
        raise ProbeFailed(f"/proc/meminfo has no {error}") from error


def parse_stalls(text: str) -> Pressure:
    """`/proc/pressure/memory` (the kernel's Documentation/accounting/psi.rst). Raises `ProbeFailed`."""
    found = {kind: float(share) for kind, share in re.findall(r"^(some|full) avg10=([\d.]+)", text, re.MULTILINE)}
    if "some" not in found:
        raise ProbeFailed("/proc/pressure/memory has no line 'some'")
    if found.get("full", 0.0) >= STALL_CRITICAL_PERCENT:
        return "critical"
    return "warning" if found["some"] >= STALL_WARNING_PERCENT else "normal"


def within_group(reading: Reading, limit: str, used: str) -> Reading:
    """A reading, reduced to what a control group may have (cgroup v2 `memory.max` and `memory.current`)."""
    if not (limit.strip().isdecimal() and used.strip().isdecimal()):
        return reading  # "max": no limit
    total, left = int(limit), max(0, int(limit) - int(used))
    return replace(
        reading,
        total_bytes=min(reading.total_bytes, total),
        available_bytes=min(reading.available_bytes, left),
    )


# macOS ----------------------------------------------------------------------------------------------------------------


def parse_vm_stat(text: str) -> int:
    """Bytes that `vm_stat` counts as free, inactive, speculative or purgeable: easy to get back. Raises `ProbeFailed`."""
    page = re.search(r"page size of (\d+) bytes", text)
    pages = dict(re.findall(r"^Pages ([\w ]+):\s+(\d+)\.$", text, re.MULTILINE))
    if page is None or "free" not in pages:
        raise ProbeFailed("vm_stat does not say its page size or its free pages")
    return int(page[1]) * sum(int(pages.get(name, 0)) for name in ("free", "inactive", "speculative", "purgeable"))


def parse_sysctl(text: str) -> Reading:
    """`sysctl hw.memsize vm.swapusage kern.memorystatus_vm_pressure_level`, without `available_bytes`. Raises `ProbeFailed`."""
    total = re.search(r"^hw\.memsize: (\d+)$", text, re.MULTILINE)
    swap = re.search(r"^vm\.swapusage:.*\bused = ([\d.]+)([KMGT])", text, re.MULTILINE)
    level = re.search(r"^kern\.memorystatus_vm_pressure_level: (\d+)$", text, re.MULTILINE)
    if total is None or swap is None:
        raise ProbeFailed("sysctl does not say hw.memsize or vm.swapusage")
    used = float(swap[1]) * 1024 ** ("KMGT".index(swap[2]) + 1)
    pressure = MACOS_LEVELS.get(int(level[1]), "normal") if level else "normal"
    return Reading(int(total[1]), 0, int(used), pressure)


# Reading --------------------------------------------------------------------------------------------------------------


def read_memory() -> Reading:
    """This machine's memory now. Takes milliseconds on macOS: call it off the event loop. Raises `ProbeFailed`."""
    if sys.platform == "darwin":
        names = ("hw.memsize", "vm.swapusage", "kern.memorystatus_vm_pressure_level")
        reading = parse_sysctl(_output("/usr/sbin/sysctl", *names))
        return replace(reading, available_bytes=parse_vm_stat(_output("/usr/bin/vm_stat")))
    try:
        reading = parse_meminfo(Path("/proc/meminfo").read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeFailed(f"/proc/meminfo: {error}") from error
    stalls = _text("/proc/pressure/memory")
    pressure: Pressure = parse_stalls(stalls) if stalls else "normal"
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    return within_group(replace(reading, pressure=pressure), limit, used)


def _text(path: str) -> str:
    """The text of a file that not every kernel has; "" if there is none."""
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROBE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise ProbeFailed(f"{command[0]}: {error}") from error
    return done.stdout


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a series of readings means. `reading` is the last one. `swaps` are samples of the swap in use, (seconds, bytes),
    of the last `SWAP_MEMORY_SECONDS`, the oldest first, at least one. What was swapped out since the lowest sample is still
    wanted by its program, so that much memory is not available."""

    reading: Reading
    pressure: Pressure
    swaps: tuple[tuple[float, int], ...]

    @property
    def swapped_bytes(self) -> int:
        return self.reading.swap_used_bytes - min(used for _, used in self.swaps)

    @property
    def available_bytes(self) -> int:
        return max(0, self.reading.available_bytes - self.swapped_bytes)


def next_outlook(before: Outlook | None, reading: Reading, now: float) -> Outlook:
    """The outlook after one more reading. `now` is of the same clock as before. Swap that grows fast is at least a warning,
    whatever the system says."""
    swaps = _sampled(before.swaps if before is not None else (), reading.swap_used_bytes, now)
    grown = reading.swap_used_bytes - min(used for at, used in swaps if now - at <= SWAP_GROWTH_SECONDS)
    pressure = reading.pressure
    if pressure == "normal" and grown >= SWAP_GROWTH_BYTES:
        pressure = "warning"
    return Outlook(reading, pressure, swaps)


def _sampled(swaps: tuple[tuple[float, int], ...], used: int, now: float) -> tuple[tuple[float, int], ...]:
    """The samples with one more. Readings that share a sample leave the lowest value in it."""
    kept = tuple((at, size) for at, size in swaps if now - at <= SWAP_MEMORY_SECONDS)
    if kept and now - kept[-1][0] < SWAP_SAMPLE_SECONDS:
        at, size = kept[-1]
        return (*kept[:-1], (at, min(size, used)))
    return (*kept, (now, used))


# Processes ------------------------------------------------------------------------------------------------------------

_FOOTPRINT_OFFSET: Final = 72
_RUSAGE_BYTES: Final = 96
"""`ri_phys_footprint` in `struct rusage_info_v0`, and the structure's size (<sys/resource.h> of macOS)."""


def own_footprint_bytes() -> int:
    """`footprint_bytes` of this process."""
    return footprint_bytes(os.getpid())


def footprint_bytes(pid: int) -> int:
    """The memory that the system charges to a process of this user: on macOS the physical footprint, which counts Metal's
    buffers and compressed pages; on Linux resident memory. Takes microseconds. 0 when it cannot be read."""
    return _physical_footprint_bytes(pid) if sys.platform == "darwin" else rss_bytes(pid)


def rss_bytes(pid: int) -> int:
    """Resident set size of a process by Linux's `/proc`; 0 when there is no such process."""
    fields = _text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") if len(fields) > 1 else 0


def _physical_footprint_bytes(pid: int) -> int:
    usage = ctypes.create_string_buffer(_RUSAGE_BYTES)
    try:
        failed = ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage(pid, 0, usage)
    except (OSError, AttributeError) as error:
        logger.warning("the physical footprint cannot be read: %s", error, extra={"action": "footprint_unknown"})
        return 0
    return 0 if failed else int.from_bytes(usage.raw[_FOOTPRINT_OFFSET : _FOOTPRINT_OFFSET + 8], sys.byteorder)
