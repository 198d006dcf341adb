"""Where jobs are kept, and the names that the store records. A job that an older Duet began is found by these names, so
they stay as they are: the queue, the workflow, the application version, and the steps (`Kind`).

The store can be damaged, locked or on a disk that takes nothing. Then it is left as it is, and `StoreUnusable` says why: only
its owner may give up what it knows (`set_aside`). The meetings' folders hold everything but the state of each job.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import sqlalchemy as sa
from dbos import DBOS
from dbos._migration import get_sqlite_migration_versions

from duet.errors import DiskFull, DuetError, Unavailable
from duet.settings import Settings

logger = logging.getLogger(__name__)

QUEUE = "meetings"
WORKFLOW = "meeting"
# DBOS resumes a workflow only under the version that began it. Its default is a hash of the workflows' source, so an
# upgrade of Duet would strand the jobs that run.
APPLICATION_VERSION = "duet-meetings-1"

LOCK_SECONDS: Final = 5.0
"""How long another process may hold the store while it is opened. Begun statements wait longer (`BUSY_SECONDS`)."""
BUSY_SECONDS: Final = 30.0
FORGET_SECONDS: Final = 5.0
"""How long a deletion waits until no reader keeps the store from being rewritten."""
MAX_PATH_BYTES: Final = 500
"""SQLite's own bound is 512 with the names of its other files."""
_SHOWN: Final = "the store of meetings ($DUET_HOME/meetings/jobs.sqlite)"
_FILES: Final = ("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm")


class StoreUnusable(Unavailable):
    """The store cannot be used now. The message says why and what to do."""


class StoreDamaged(StoreUnusable):
    """It holds no database, or a broken one: waiting does not help."""


def root_folder(settings: Settings) -> Path:
    return settings.home / "meetings"


def jobs_folder(settings: Settings) -> Path:
    return root_folder(settings) / "jobs"


def store_file(settings: Settings) -> Path:
    return root_folder(settings) / "jobs.sqlite"


def open_database(settings: Settings) -> sa.Engine:
    """The job store, migrated, in WAL mode; one process at a time. Raises `StoreUnusable`."""
    path = store_file(settings)
    try:
        with explained():
            for folder in (root_folder(settings), jobs_folder(settings)):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _opening(settings):
                _probe(path)
                # DBOS makes a connection of its own from an address. Its path is quoted, for any name that a home may have.
                DBOS.migrate(sa.URL.create("sqlite", database=_uri(path), query={"uri": "true"}).render_as_string())
                engine = sa.create_engine("sqlite://", creator=lambda: _connect(path), poolclass=sa.pool.QueuePool)
                with engine.connect() as connection:
                    # Without WAL readers wait for writers: polling a job took 181 ms at the 99th percentile instead of 9.
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                _say_newer(engine)
            path.chmod(0o600)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        raise StoreUnusable(f"{_SHOWN} cannot be used: {error.strerror}{where}") from error
    return engine


def _connect(path: Path) -> sqlite3.Connection:
    """As DBOS makes its own, and what is deleted is overwritten."""
    connection = sqlite3.connect(
        _uri(path), uri=True, timeout=BUSY_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False
    )
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def _uri(path: Path, **options: str) -> str:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    return f"file:{quote(os.fsencode(path))}{f'?{query}' if query else ''}"


@contextlib.contextmanager
def _opening(settings: Settings) -> Iterator[None]:
    """Held by the one process that opens or replaces the store. Raises `StoreUnusable` when another one does not end."""
    with (root_folder(settings) / "migrate.lock").open("w") as lock:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StoreUnusable(f"{_SHOWN} is being opened by another process") from None
                time.sleep(0.05)
        yield


def _probe(path: Path) -> None:
    """Raises `StoreUnusable` for what cannot be written or is broken, before anything is changed."""
    if (length := len(os.fsencode(path))) > MAX_PATH_BYTES:
        raise StoreUnusable(
            f"{_SHOWN} cannot be opened: its path has {length} bytes, and SQLite opens none beyond {MAX_PATH_BYTES}. "
            "Set DUET_HOME to a shorter one"
        )
    if path.is_symlink() and not path.exists():
        raise StoreUnusable(f"{_SHOWN} is a link to a file that does not exist")
    if not path.exists():
        return
    if not path.is_file():
        raise StoreDamaged(f"{_SHOWN} is no file. {_REMEDY}")
    with contextlib.closing(sqlite3.connect(_uri(path, mode="rw"), uri=True, timeout=LOCK_SECONDS)) as connection:
        said = connection.execute("PRAGMA quick_check(1)").fetchone()
        if said[0] != "ok":
            raise StoreDamaged(f"{_SHOWN} is damaged: {said[0]}. {_REMEDY}")
        connection.execute("BEGIN IMMEDIATE")
        connection.rollback()


def _say_newer(engine: sa.Engine) -> None:
    found, known = get_sqlite_migration_versions(engine)
    if found > known:
        logger.warning(
            "%s was written by a newer Duet (schema %d, this one knows %d); what this one cannot read is refused",
            _SHOWN,
            found,
            known,
            extra={"action": "store_newer"},
        )


_REMEDY: Final = (
    "Nothing was changed. `duet repair` sets it aside and makes a new one; the meetings are kept and found again"
)
_DAMAGED: Final = frozenset({sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT})


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Turns an error of the database into one that says what is wrong with the store."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise _explained(error.orig or error) from error
    except sqlite3.Error as error:
        raise _explained(error) from error


def _explained(error: BaseException) -> DuetError:
    code: Any = getattr(error, "sqlite_errorcode", None)
    kind = code & 0xFF if isinstance(code, int) else None
    if kind in _DAMAGED:
        return StoreDamaged(f"{_SHOWN} is damaged: {error}. {_REMEDY}")
    if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreUnusable(f"{_SHOWN} is locked by another process; meetings go on when it lets go")
    if kind == sqlite3.SQLITE_FULL:
        return DiskFull(f"{_SHOWN} takes nothing more: the disk is full. Free space on it")
    return StoreUnusable(f"{_SHOWN} cannot be used: {error}")


def identity(settings: Settings) -> tuple[int, int] | None:
    """Which file is the store now: another one after `set_aside`, or when somebody moved it."""
    try:
        found = store_file(settings).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def forget_deleted(engine: sa.Engine) -> bool:
    """Rewrite the store, so that neither its pages nor its log hold what was deleted. False when others keep it busy."""
    deadline = time.monotonic() + FORGET_SECONDS
    while True:
        try:
            with contextlib.closing(engine.raw_connection()) as connection:
                connection.execute("PRAGMA busy_timeout=1000")
                try:
                    connection.execute("VACUUM")
                    busy = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
                finally:
                    connection.execute(f"PRAGMA busy_timeout={BUSY_SECONDS * 1000:.0f}")
            if not busy:
                return True
        except sqlite3.OperationalError as error:
            logger.debug("the store cannot be rewritten yet: %s", error)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)


def set_aside(settings: Settings) -> Path | None:
    """Rename a store that is damaged, so that a new one is made. Returns its new name, None when it is whole.

    Raises `StoreUnusable` when it is not damaged and yet cannot be used: locked, or on a disk that cannot be written.
    """
    try:
        with explained(), _opening(settings):
            try:
                _probe(store_file(settings))
            except sqlite3.DatabaseError as error:
                if not isinstance(_explained(error), StoreDamaged):
                    raise
            except StoreDamaged as error:
                logger.debug("%s", error)
            else:
                return None
            mark = time.strftime("%Y%m%d-%H%M%S")
            for name in _FILES:
                with contextlib.suppress(FileNotFoundError):
                    (root_folder(settings) / name).rename(root_folder(settings) / f"{name}.damaged-{mark}")
            return root_folder(settings) / f"{_FILES[0]}.damaged-{mark}"
    except FileNotFoundError:
        return None  # there is no folder of meetings yet
    except OSError as error:
        raise StoreUnusable(f"{_SHOWN} cannot be set aside: {error.strerror}") from error
