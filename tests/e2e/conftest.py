"""The whole stack as real processes, started once a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from duet.testing.stack import Stack, running


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a running stack, or a module's engine, run in one process: else each process would start its own."""
    for item in items:
        if "tests/e2e" not in str(item.path):
            continue
        item.add_marker(pytest.mark.e2e)
        fixtures = getattr(item, "fixturenames", ())
        if "stack" in fixtures:
            item.add_marker(pytest.mark.xdist_group("stack"))
        elif "gateway" in fixtures or "installed" in fixtures:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`duet up --embedded` on free ports."""
    home: Path = tmp_path_factory.mktemp("home")
    with running(home) as found:
        yield found
