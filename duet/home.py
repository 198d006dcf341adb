"""The folder of everything, `$DUET_HOME`: private, ours, and with folders in it that are what they seem.

Nothing here follows a link to delete something.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import stat
from pathlib import Path

from duet.errors import DuetError

OTHERS = 0o077
"""The bits of a mode by which others than the owner may do something."""
PRIVATE = ("api_key", "config.toml", "kv", "logs", "meetings", "run", "tmp")
"""What is closed to others besides the home itself. Below these folders everything is made private."""
_OURS = frozenset({*PRIVATE, "models", "bench", ".DS_Store", ".metadata_never_index"})


class HomeRefused(DuetError):
    """The home cannot be used. The message says why, and what to do."""


def open_home(home: Path) -> list[str]:
    """Make the home if there is none, and close it to others. Returns a sentence for each thing that others could reach.

    A folder that holds other things too, as `/` or `/tmp` would, keeps its mode: what is ours in it is closed, and the rest is
    said.
    Raises `HomeRefused` when it cannot be made, is no folder, or belongs to somebody else.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        found, names = home.stat(), {path.name for path in home.iterdir()}
    except FileExistsError as error:
        raise HomeRefused(f"{home} is no folder; DUET_HOME says where it is") from error
    except OSError as error:
        raise HomeRefused(f"{home} cannot be made: {error.strerror}; DUET_HOME says where it is") from error
    if found.st_uid != os.geteuid():
        raise HomeRefused(
            f"{home} belongs to {_user(found.st_uid)}, and this program runs as {_user(os.geteuid())}: run it as that user, "
            "or set DUET_HOME to a folder of your own"
        )
    own = home.name == ".duet" or (names <= _OURS and not found.st_mode & stat.S_ISVTX)
    said = [_close(home) if own else _shared(home), *(_close(home / name) for name in PRIVATE)]
    return [sentence for sentence in said if sentence]


def _close_below(folder: Path) -> None:
    """The same for everything in a folder of ours that was open. No link is followed."""
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)  # noqa: PTH118 - os.walk gives strings, and a home may hold a hundred thousand files
            with contextlib.suppress(FileNotFoundError):  # a running program removed it
                mode = os.lstat(path).st_mode
                if mode & OTHERS and not stat.S_ISLNK(mode):
                    os.chmod(path, stat.S_IMODE(mode) & ~OTHERS)  # noqa: PTH101 - as above


def _shared(home: Path) -> str:
    found = stat.S_IMODE(home.stat().st_mode)
    if not found & OTHERS:
        return ""
    return (
        f"{home} can be reached by other users (mode {found:04o}) and holds other things than Duet's, so it stays as it is: "
        "set DUET_HOME to a folder of its own"
    )


def _close(path: Path) -> str:
    """Take others' rights away. What was done; "" when there was nothing to do."""
    try:
        found = path.lstat()
    except OSError:
        return ""
    if stat.S_ISLNK(found.st_mode) or not found.st_mode & OTHERS:
        return ""  # a link's target is the owner's choice, and the home is closed
    was = f"{path} could be reached by other users (mode {stat.S_IMODE(found.st_mode):04o})"
    try:
        path.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS)
        if stat.S_ISDIR(found.st_mode) and path.name in PRIVATE:
            _close_below(path)
    except OSError as error:
        return f"{was}, and this cannot be changed: {error.strerror}"
    changed = (
        "; whoever read the key can still use it: delete the file to get a new one" if path.name == "api_key" else ""
    )
    return f"{was}; now it cannot{changed}"


def _user(number: int) -> str:
    with contextlib.suppress(KeyError):
        return f"user {pwd.getpwuid(number).pw_name}"
    return f"user {number}"


def own_folder(home: Path, *names: str) -> Path:
    """The private folder `home/NAME/…`. What else has its name, or that of a folder on the way, is removed: a link, a file.

    Raises `OSError`.
    """
    path = home
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in names:
        path = path / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            path.unlink()
        path.mkdir(mode=0o700, exist_ok=True)
    return path


def remove_tree(path: Path) -> None:
    """Remove what has this name: a folder with all its content, a file, or a link but not what it leads to.

    Raises `OSError` when something stays. It is no error that there is nothing.
    """
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.lstat().st_mode):
            shutil.rmtree(path)  # follows no link below either
        else:
            path.unlink()
