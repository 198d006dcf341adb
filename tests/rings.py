"""Runs the rings of the tests and says at the end what each did: `make unit`, `make test`, `make prove`."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

CORES = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
REPORTS = Path("build/tests")
NEEDS_MORE = ("recordings", "debian", "wheel", "long")
"""Markers of what `make test` leaves to `make prove`: it needs more than the lock, or more time."""
ORDINARY = " and ".join(f"not {marker}" for marker in (*NEEDS_MORE, "metal"))


@dataclass(frozen=True)
class Ring:
    name: str
    arguments: tuple[str, ...]
    workers: int = 0
    """Processes of pytest-xdist: one a core for tests that compute, two for tests that wait for other processes."""


RINGS = (
    Ring("unit", ("tests/unit", "--dist=worksteal"), CORES),
    Ring("contract", ("tests/contract", "--dist=loadgroup"), 2 * CORES),
    Ring("mlx", ("tests/mlx", "--dist=worksteal"), CORES),
    Ring("e2e", ("tests/e2e", "--dist=loadgroup"), 2 * CORES),
)


@dataclass(frozen=True)
class Result:
    name: str
    code: int
    seconds: float
    counts: str

    def __str__(self) -> str:
        said = "passed" if self.code == 0 else "FAILED"
        return f"{self.name:<10} {said}  {self.seconds:5.0f} s  {self.counts}"


def run(ring: Ring, selection: str, environment: dict[str, str]) -> Result:
    print(f"\nring {ring.name}", flush=True)
    report = REPORTS / f"{ring.name}.xml"
    report.unlink(missing_ok=True)
    workers = (f"--numprocesses={ring.workers}",) if ring.workers else ()
    command = [sys.executable, "-m", "pytest", *ring.arguments, *workers, "-m", selection, f"--junitxml={report}"]
    started_at = time.monotonic()
    code = subprocess.run(command, env=environment, check=False).returncode
    return Result(ring.name, code, time.monotonic() - started_at, counts(report))


def counts(report: Path) -> str:
    if not report.exists():
        return "pytest ended without a report"
    suite = ElementTree.parse(report).getroot()[0]
    number = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    passed = 2 * number["tests"] - sum(number.values())
    found = {"passed": passed, "failed": number["failures"], "errors": number["errors"], "skipped": number["skipped"]}
    return ", ".join(f"{count} {word}" for word, count in found.items() if count)


def close(results: list[Result], not_run: dict[str, str], failed: list[str]) -> int:
    """The last lines: a ring a line, then one sentence."""
    print()
    for result in results:
        print(result)
    for name, reason in not_run.items():
        print(f"{name:<10} NOT RUN: {reason}")
    failed = [result.name for result in results if result.code] + failed
    minutes, seconds = divmod(round(sum(result.seconds for result in results)), 60)
    said = f"failed: {', '.join(failed)}" if failed else "every ring that ran passed"
    print(f"{said}; {minutes} min {seconds} s", flush=True)
    return 1 if failed else 0


def unit() -> int:
    """The inner loop: hypothesis draws a quarter of its examples (tests/examples.py)."""
    ring = RINGS[0]
    quick = replace(ring, arguments=(*ring.arguments, "--quiet", "--hypothesis-profile=quick"))
    return close([run(quick, ORDINARY, dict(os.environ))], {}, [])


def test(names: list[str]) -> int:
    environment = dict(os.environ)
    return close([run(ring, ORDINARY, environment) for ring in RINGS if not names or ring.name in names], {}, [])


def prove(audio: str, evaluation: str) -> int:
    """Everything that needs more, in one run of pytest. Under CI a missing tool is a failure."""
    environment = dict(os.environ)
    for name, folder in (("DUET_TEST_AUDIO", audio), ("DUET_TEST_EVAL", evaluation)):
        if folder and Path(folder).is_dir():
            environment[name] = str(Path(folder).absolute())
    reasons = {
        "recordings": "" if "DUET_TEST_AUDIO" in environment else "DUET_TEST_AUDIO names no folder of recordings",
        "debian": ""
        if shutil.which("espeak-ng") and shutil.which("systemd-analyze")
        else "espeak-ng or systemd-analyze is missing",
        "wheel": "" if shutil.which("uv") or Path(".uv/bin/uv").exists() else "uv is missing",
        "long": "",
    }
    missing = {name: reason for name, reason in reasons.items() if reason}
    selection = " or ".join(name for name in reasons if name not in missing)
    if missing:
        selection = f"({selection}) and " + " and ".join(f"not {name}" for name in missing)
    result = run(Ring("prove", ("tests",)), selection, environment)
    # Recordings are not ours to ship, so nobody can fetch them: they alone may be missing under CI too.
    failed = [name for name in missing if name != "recordings"] if "CI" in os.environ else []
    return close([result], missing, failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("unit", help="the inner loop")
    ordinary = verbs.add_parser("test", help="what the lock alone can run: all rings, or those that are named")
    ordinary.add_argument("rings", nargs="*", choices=[[], *(ring.name for ring in RINGS)])
    more = verbs.add_parser("prove", help="what needs more")
    more.add_argument("--audio", default="", help="folder of real recordings")
    more.add_argument("--eval", default="", help="folder of frozen evaluation speech, for the leak test")
    arguments = parser.parse_args()
    if arguments.verb == "unit":
        return unit()
    if arguments.verb == "test":
        return test(arguments.rings)
    return prove(arguments.audio, arguments.eval)


if __name__ == "__main__":
    sys.exit(main())
