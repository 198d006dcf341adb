"""What is wrong with a model folder is found when the folder is, and said with the file's name. Nothing of it is believed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.folders.inspection import inspect
from engine.folders.reading import Problem
from engine.kvstore.fingerprint import fingerprint
from tests.folders import write_folder
from tests.odd_folders import BAD, ODD


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model")


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_the_file(folder: Path, case: str) -> None:
    mutate, says = BAD[case]
    mutate(folder)
    found = inspect(folder)
    assert found.problem is not None
    assert says in found.problem
    assert found.roles == ()
    assert str(folder) not in found.problem


@pytest.mark.parametrize("case", ODD)
def test_what_lies_beside_a_model_does_not_matter(folder: Path, case: str) -> None:
    mutate, roles = ODD[case]
    mutate(folder)
    found = inspect(folder)
    assert found.problem is None
    assert found.roles == roles
    assert fingerprint(folder)


def test_a_folder_that_may_not_be_read_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("engine.folders.reading.os.open", refuse)
    assert inspect(folder).problem == "config.json cannot be read: Permission denied"
    monkeypatch.setattr("engine.folders.reading.os.scandir", refuse)
    assert inspect(folder).problem == "the folder cannot be read: Permission denied"


def test_a_file_that_is_in_icloud_only_is_not_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from engine.folders.reading import check_regular

    real = (folder / "config.json").stat()
    away = SimpleNamespace(st_mode=real.st_mode, st_size=real.st_size, st_flags=0x40000000)
    with pytest.raises(Problem, match=r"config\.json is in iCloud only"):
        check_regular("config.json", away)  # type: ignore[arg-type]


def test_a_folder_that_is_not_there_is_a_problem_and_no_error(tmp_path: Path) -> None:
    assert inspect(tmp_path / "gone").problem == "the folder cannot be read: No such file or directory"


@given(st.data())
@settings(max_examples=120, deadline=None)
def test_whatever_lies_in_a_folder_it_is_inspected(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any bytes in any file, and any mutation of the right ones: an inspection, and in time."""
    folder = write_folder(tmp_path_factory.mktemp("any") / "model")
    names = st.sampled_from([file.name for file in folder.iterdir()])
    for name in data.draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        file = folder / name
        whole = file.read_bytes()
        at = data.draw(st.integers(0, len(whole)))
        piece = data.draw(
            st.one_of(st.binary(max_size=40), st.sampled_from([b"", b"[" * 5000, b"\xff" * 8, b"null", b'{"a":1}']))
        )
        file.write_bytes(whole[:at] + piece + whole[at + data.draw(st.integers(0, 40)) :])
    found = inspect(folder)
    assert bool(found.problem) != bool(found.roles)
    if found.problem is None:
        assert fingerprint(folder)
    shutil.rmtree(folder)
