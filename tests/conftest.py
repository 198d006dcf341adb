"""What holds in every run of tests: properties draw the same examples each time, and a unit test stays short."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from duet.settings import Settings, load_settings
from tests.examples import FULL, QUICK

settings.register_profile("duet", deadline=None, derandomize=True, max_examples=FULL)
settings.register_profile("quick", settings.get_profile("duet"), max_examples=QUICK)
settings.load_profile("duet")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share one service run in one process: else each process would start it again."""
    for item in items:
        loop = item.get_closest_marker("asyncio")
        fixtures = getattr(item, "fixturenames", ())
        if "stack" in fixtures:
            item.add_marker(pytest.mark.xdist_group("stack"))
        elif (loop and loop.kwargs.get("loop_scope") == "module") or not {"gateway", "installed"}.isdisjoint(fixtures):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


CPU_SECONDS = 3.0
"""A unit test that computes for longer fails under CI. Seconds of the CPU and not of the clock: a machine that is busy with
other work stretches the clock several times over, and the test is no slower for that."""


HomeSettings = Callable[..., Settings]


@pytest.fixture
def home_settings(tmp_path: Path) -> HomeSettings:
    """Settings of a home of the test's own, given overrides as the command line has them. Nothing comes from our environment."""

    def load(**overrides: Any) -> Settings:
        return load_settings({"DUET_HOME": str(tmp_path)}, **overrides)

    return load


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None]:
    begun = cpu_seconds()
    yield
    used = cpu_seconds() - begun
    named = item.get_closest_marker("cpu_seconds")
    limit = named.args[0] if named else CPU_SECONDS
    if "CI" in os.environ and "tests/unit" in item.path.as_posix() and used > limit:
        pytest.fail(f"it took {used:.1f} s of CPU time; a unit test may take {limit:.1f} s", pytrace=False)


def cpu_seconds() -> float:
    """CPU time of this process, of all its threads, and of the children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
