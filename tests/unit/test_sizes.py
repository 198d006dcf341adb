"""Bytes as the command line and error messages show them."""

from __future__ import annotations

import pytest

from duet.sizes import gigabytes, readable


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1_500_000, "1.5 MB"),
        (10**9, "1.0 GB"),
        (123_400_000_000, "123.4 GB"),
    ],
)
def test_bytes_are_shown_in_the_largest_unit_that_fits(count: int, shown: str) -> None:
    assert readable(count) == shown


def test_sizes_of_models_are_always_gigabytes() -> None:
    assert [gigabytes(count) for count in (0, 400 << 20, 7_340_000_000)] == ["0.0 GB", "0.4 GB", "7.3 GB"]
