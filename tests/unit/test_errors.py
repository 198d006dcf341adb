"""The error tree and its form on the wire between processes."""

from __future__ import annotations

import json

import pytest

from duet.errors import (
    Conflict,
    ContextTooLong,
    DuetError,
    Internal,
    InvalidRequest,
    ModelNotFound,
    ModelUnusable,
    WorkerLost,
    from_code,
)
from duet.http.errors import envelope


def every(root: type[DuetError]) -> list[type[DuetError]]:
    return [root, *(found for child in root.__subclasses__() for found in every(child))]


@pytest.mark.parametrize("kind", [InvalidRequest, ContextTooLong, ModelNotFound, Conflict, WorkerLost])
def test_an_error_survives_the_way_through_a_worker(kind: type[DuetError]) -> None:
    there = kind("said", param="model", retry_after_seconds=3)
    here = from_code(there.code, there.message, param=there.param, retry_after_seconds=there.retry_after_seconds)
    assert type(here) is kind
    assert envelope(here) == envelope(there)
    assert here.retry_after_seconds == 3


@pytest.mark.parametrize("kind", [kind for kind in every(DuetError) if kind.__module__ == "duet.errors"])
def test_who_may_come_back_is_told_when(kind: type[DuetError]) -> None:
    error = kind("said")
    mends_itself = error.status in (429, 503) and kind is not ModelUnusable
    assert (error.retry_after_seconds is not None) == mends_itself
    assert json.loads(envelope(error))["error"].get("retry_after") == error.retry_after_seconds
    assert json.loads(envelope(kind("said", retry_after_seconds=9)))["error"]["retry_after"] == 9


def test_codes_are_unique_but_for_the_fault_of_ours() -> None:
    codes = [kind.code for kind in every(DuetError) if "code" in vars(kind) and kind not in (DuetError, Internal)]
    assert len(codes) == len(set(codes))


def test_an_unknown_code_is_a_fault_of_ours() -> None:
    assert from_code("from_the_future", "x").status == 500
