"""The home: private and ours, its key a word, its folders no links, and used by one."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from duet import claims, home
from duet.claims import InUse, claim, holder, wait_for_orphans
from duet.errors import DuetError
from duet.home import HomeRefused, open_home, own_folder, remove_tree
from duet.keys import api_key

ODD_NAMES = ["a b", "家 ñ", "%41?x#y&z=1", 'quote\'s "x"', "-rf", "x" * 200, "back\\slash", "new\nline"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_home_of_any_name_is_made_private(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "deeper"
    assert open_home(folder) == []
    assert mode(folder) == 0o700
    assert api_key(folder) == api_key(folder)


@pytest.mark.parametrize("wide", [0o755, 0o777, 0o750, 0o711])
def test_a_home_that_others_can_reach_is_closed_and_said(tmp_path: Path, wide: int) -> None:
    for name in ("kv", "meetings", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o755)
    (tmp_path / "api_key").write_text("duet-x\n")
    (tmp_path / "api_key").chmod(0o644)
    tmp_path.chmod(wide)
    said = "\n".join(open_home(tmp_path))
    assert mode(tmp_path) == 0o700
    assert mode(tmp_path / "api_key") == 0o600
    assert {mode(tmp_path / name) for name in ("kv", "meetings", "tmp")} == {0o700}
    assert f"{tmp_path} could be reached by other users (mode {wide:04o}); now it cannot" in said
    assert "api_key could be reached" in said
    assert "get a new one" in said
    assert open_home(tmp_path) == []


@pytest.mark.parametrize("other", ["notes.txt", "usr", ".X11-unix", "sticky"])
def test_a_folder_that_is_not_ours_alone_keeps_its_mode_and_the_key_is_closed(tmp_path: Path, other: str) -> None:
    (tmp_path / "api_key").write_text("duet-x\n")
    (tmp_path / "api_key").chmod(0o644)
    if other != "sticky":
        (tmp_path / other).mkdir()
    wide = 0o1777 if other == "sticky" else 0o755
    tmp_path.chmod(wide)
    said = "\n".join(open_home(tmp_path))
    assert mode(tmp_path) == wide
    assert f"{tmp_path} can be reached by other users (mode {wide:04o})" in said
    assert mode(tmp_path / "api_key") == 0o600


def test_the_usual_home_is_closed_whatever_lies_in_it(tmp_path: Path) -> None:
    usual = tmp_path / ".duet"
    usual.mkdir()
    (usual / "notes.txt").write_text("x")
    usual.chmod(0o755)
    assert len(open_home(usual)) == 1
    assert mode(usual) == 0o700


def test_what_a_link_in_the_home_leads_to_keeps_its_mode(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere").chmod(0o755)
    (tmp_path / "home").mkdir(mode=0o700)
    (tmp_path / "home" / "kv").symlink_to(tmp_path / "elsewhere")
    assert open_home(tmp_path / "home") == []
    assert mode(tmp_path / "elsewhere") == 0o755


def test_what_lies_in_an_open_folder_of_ours_is_closed_too(tmp_path: Path) -> None:
    deep = tmp_path / "home" / "meetings" / "jobs" / "one"
    deep.mkdir(parents=True)
    (deep / "input").write_text("x")
    (tmp_path / "elsewhere").write_text("x")
    (tmp_path / "elsewhere").chmod(0o644)
    (deep / "link").symlink_to(tmp_path / "elsewhere")
    (deep / "gone").symlink_to("gone")
    for path in (*deep.parents, deep, deep / "input"):
        if tmp_path / "home" in (path, *path.parents):
            path.chmod(0o777)
    assert len(open_home(tmp_path / "home")) == 2
    found = [path for path in (tmp_path / "home").rglob("*") if not path.is_symlink()]
    assert [path for path in found if mode(path) & 0o077] == []
    assert mode(tmp_path / "elsewhere") == 0o644


def test_a_home_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home.os, "geteuid", lambda: os.getuid() + 4242)  # type: ignore[attr-defined]
    with pytest.raises(HomeRefused, match=r"belongs to .*, and this program runs as .*DUET_HOME"):
        open_home(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["file", "link to nothing", "below a file"])
def test_a_home_that_cannot_be_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "home"
    if what == "link to nothing":
        path.symlink_to(tmp_path / "gone")
    else:
        path.write_text("x")
    with pytest.raises(HomeRefused, match=r"home.*DUET_HOME"):
        open_home(path / "deeper" if what == "below a file" else path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"one\ntwo\n", "one word"),
        (b"one two\n", "one word"),
        (b"\xff\xfe\n", "one word"),
        ("schlüssel".encode(), "one word"),
        (b"x" * 5000, "one word"),
        (b"a\0b", "one word"),
    ],
)
def test_a_file_without_a_usable_key_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "api_key").write_bytes(content)
    with pytest.raises(DuetError, match="api_key") as caught:
        api_key(tmp_path)
    assert said in caught.value.message
    assert "delete it" in caught.value.message


@pytest.mark.parametrize("content", [b"duet-x", b"duet-x\n", b"duet-x\r\n", b"\n duet-x \n", b"\xef\xbb\xbfduet-x\n"])
def test_a_key_of_any_editor_is_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "api_key").write_bytes(content)
    assert api_key(tmp_path) == "duet-x"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_a_key_that_is_no_file_is_named_and_does_not_hang(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "api_key"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("gone")}[kind]()
    with pytest.raises(DuetError, match=r"api_key is (no file|a link)"):
        api_key(tmp_path)


Make = Callable[[Path, Path], Any]
IN_THE_WAY: dict[str, Make] = {
    "nothing": lambda path, elsewhere: None,
    "a folder": lambda path, elsewhere: path.mkdir(),
    "a file": lambda path, elsewhere: path.write_text("x"),
    "a link": lambda path, elsewhere: path.symlink_to(elsewhere),
    "a link to nothing": lambda path, elsewhere: path.symlink_to("gone"),
    "a link to a file": lambda path, elsewhere: path.symlink_to(elsewhere / "precious"),
    "a pipe": lambda path, elsewhere: os.mkfifo(path),
}


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_folder_of_ours_is_a_folder_whatever_was_there(tmp_path: Path, kind: str, depth: int) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "home"
    (elsewhere / "router").mkdir(parents=True)
    (elsewhere / "precious").write_text("x")
    (elsewhere / "router" / "precious").write_text("x")
    folder.mkdir()
    names = ("tmp", "router")
    if depth:
        (folder / "tmp").mkdir()
    IN_THE_WAY[kind](folder.joinpath(*names[: depth + 1]), elsewhere)
    found = own_folder(folder, *names)
    assert found == folder / "tmp" / "router"
    assert found.resolve() == found
    remove_tree(found)
    assert not found.exists()
    assert (elsewhere / "precious").exists()
    assert (elsewhere / "router" / "precious").exists()


@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_a_tree_goes_and_what_its_links_lead_to_stays(tmp_path: Path, kind: str) -> None:
    elsewhere, tree = tmp_path / "elsewhere", tmp_path / "tree"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("x")
    IN_THE_WAY[kind](tree, elsewhere)
    if kind == "a folder":
        for name, make in IN_THE_WAY.items():
            make(tree / name, elsewhere)
    remove_tree(tree)
    assert not os.path.lexists(tree)
    assert (elsewhere / "precious").exists()


def _hold(folder: str, name: str, supervised: bool, ready: Any) -> None:
    held = claim(Path(folder), name, {"engine": 9}, supervised=supervised)
    ready.send(None)
    time.sleep(600)
    held.release()


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Start a process that has a claim."""
    started = []

    def start(name: str, *, supervised: bool = False) -> Any:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_hold, args=(str(tmp_path), name, supervised, theirs), daemon=True)
        process.start()
        started.append(process)
        ours.recv()
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_claim_is_refused_with_who_has_the_first(tmp_path: Path, other: Any) -> None:
    process = other("engine")
    with pytest.raises(InUse, match=rf"in use by process {process.pid} \(engine on port 9\)"):
        claim(tmp_path, "engine", {})
    claim(tmp_path, "router", {}).release()
    found = holder(tmp_path, "engine")
    assert found is not None
    assert (found.pid, found.ports, found.supervised) == (process.pid, {"engine": 9}, False)


def test_a_claim_ends_with_its_process_however_it_ends(tmp_path: Path, other: Any) -> None:
    process = other("engine")
    process.kill()
    process.join()
    assert holder(tmp_path, "engine") is None
    assert (tmp_path / "run" / "engine.lock").read_text() != ""  # what it wrote is still there, and means nothing
    held = claim(tmp_path, "engine", {})
    assert json.loads((tmp_path / "run" / "engine.lock").read_text())["pid"] == os.getpid()
    held.release()


def test_looking_does_not_keep_a_claim_away(tmp_path: Path) -> None:
    claim(tmp_path, "up", {}).release()
    for _ in range(50):
        assert holder(tmp_path, "up") is None
        claim(tmp_path, "up", {}).release()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x"}', "\0" * 9000])
def test_a_claim_whose_text_is_broken_is_still_a_claim(tmp_path: Path, other: Any, text: str) -> None:
    other("engine")
    (tmp_path / "run" / "engine.lock").write_text(text)
    with pytest.raises(InUse, match="in use by another process"):
        claim(tmp_path, "engine", {})


@pytest.mark.parametrize("kind", ["a folder", "a link", "a link to nothing", "a pipe"])
def test_a_lock_that_is_no_file_keeps_nobody_away(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    IN_THE_WAY[kind](tmp_path / "run" / "engine.lock", tmp_path)
    claim(tmp_path, "engine", {}).release()
    assert holder(tmp_path, "engine") is None


def test_programs_of_a_killed_one_are_waited_for_and_others_are_not(
    tmp_path: Path, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "ENDING_SECONDS", 0.3)
    wait_for_orphans(tmp_path, ["engine", "router"])
    alone = other("router")
    with pytest.raises(InUse, match=str(alone.pid)):
        wait_for_orphans(tmp_path, ["engine", "router"])
    alone.kill()
    alone.join()
    orphan = other("engine", supervised=True)
    with pytest.raises(InUse, match=str(orphan.pid)):
        wait_for_orphans(tmp_path, ["engine", "router"])
    monkeypatch.setattr(claims, "ENDING_SECONDS", 20.0)
    orphan.kill()
    wait_for_orphans(tmp_path, ["engine", "router"])
