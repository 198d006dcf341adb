"""The index of one directory of KV files: SQLite beside them. The process that holds the directory's lock owns both.

Rows are blocks (tokens start..end after `parent`) and checkpoints (the state layers at `end`). A lookup asks only by keys, so
its memory does not grow with the number of rows.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal
from urllib.parse import quote

Kind = Literal["block", "checkpoint"]
SCHEMA_VERSION: Final = 2
CHILDREN: Final = 64
"""A lookup compares at most this many entries after one parent, the most recently used ones."""
KEYS_A_QUERY: Final = 500
SIGHTINGS: Final = 200_000
"""How many prefixes are remembered as seen."""
USED_SECONDS: Final = 30
"""Uses are noted in steps of this length. Within one step later blocks are evicted first: nothing can be restored without its
beginning. And a conversation that continues writes its rows once a step, not at every turn."""
BUSY_SECONDS: Final = 1.0
ROW_BYTES: Final = 500
"""What an entry's row takes besides tokens and media, with its share of all indexes and of pages that are not full (measured:
230 to 630)."""
_PLACE: Final = struct.Struct("<II32s")

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS entry (
  key BLOB PRIMARY KEY, kind TEXT NOT NULL, parent BLOB NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL,
  tokens BLOB NOT NULL, media BLOB NOT NULL, bytes INTEGER NOT NULL, saves_seconds REAL NOT NULL, tip INTEGER NOT NULL,
  created REAL NOT NULL, used REAL NOT NULL, hits INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS entry_parent ON entry (parent, kind, used);
CREATE INDEX IF NOT EXISTS entry_used ON entry (used, start DESC);
CREATE TABLE IF NOT EXISTS sighting (key BLOB PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sighting_seen ON sighting (seen);
CREATE TABLE IF NOT EXISTS total (
  one INTEGER PRIMARY KEY CHECK (one = 1), bytes INTEGER NOT NULL, entries INTEGER NOT NULL, sightings INTEGER NOT NULL
);
INSERT OR IGNORE INTO total VALUES (1, 0, 0, 0);
CREATE TRIGGER IF NOT EXISTS entry_added AFTER INSERT ON entry
  BEGIN UPDATE total SET bytes = bytes + NEW.bytes, entries = entries + 1; END;
CREATE TRIGGER IF NOT EXISTS entry_gone AFTER DELETE ON entry
  BEGIN UPDATE total SET bytes = bytes - OLD.bytes, entries = entries - 1; END;
"""
_COLUMNS: Final = "key, kind, parent, start, stop, tokens, media, bytes, saves_seconds, tip, used, hits"


@dataclass(frozen=True)
class Media:
    """The place of an image or a recording: tokens start..end stand for the content that `digest` (sha256) names."""

    start: int
    end: int
    digest: bytes


@dataclass(frozen=True)
class Entry:
    """One file. `tokens` are the tokens from `start` to `end` as little-endian uint32, `media` those that begin among them.

    `size` is what it takes on disk, including its row. `saves_seconds` is the prefill that a hit saves. A `tip` is the end of a
    sequence: when the sequence continues, a longer entry takes its place.
    """

    key: bytes
    kind: Kind
    parent: bytes
    start: int
    end: int
    tokens: bytes
    media: tuple[Media, ...]
    size: int
    saves_seconds: float
    tip: bool
    used: float = 0.0
    hits: int = 0

    def extends(self, other: Entry) -> bool:
        """Whether `other` is a proper beginning of it."""
        return (
            other.end < self.end
            and self.tokens.startswith(other.tokens)
            and self.media[: len(other.media)] == other.media
        )


class Damaged(Exception):
    """The file is no database, or not one of ours. Its owner makes it anew, empty."""


class IndexBusy(Exception):
    """The database may be whole but cannot be used now: the disk is full or read-only, or another process holds it."""


class Index:
    """Used by one thread. Every method may raise `Damaged` or `IndexBusy`. With `read_only` nothing is written, not even the
    schema, and the file must exist."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        with _damage():
            mode = "ro" if read_only else "rwc"
            self._db = sqlite3.connect(
                f"file:{quote(str(path))}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_SECONDS
            )
        try:
            with _damage():
                if read_only:
                    _check_version(self._db.execute("PRAGMA user_version").fetchone()[0])
                    return
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                _check_version(version)
                self._db.execute("PRAGMA journal_mode=WAL")
                # A power cut may lose the last rows, and their files are swept then. The database stays whole.
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.executescript(_SCHEMA)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                # Only one row is read, so that start-up stays fast: a damaged page is found when it is needed.
                self._db.execute("SELECT * FROM entry LIMIT 1").fetchone()
                self._sightings = int(self._db.execute("SELECT sightings FROM total").fetchone()[0])
        except (Damaged, IndexBusy):
            self._db.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of `keys` that have an entry."""
        return self._among("entry", keys)

    def children(self, parents: Sequence[bytes], kind: Kind) -> list[Entry]:
        """Entries after any of `parents`, at most `CHILDREN` a parent, the most recently used first."""
        found = []
        with _damage():
            for parent in parents:
                found += self._db.execute(
                    f"SELECT {_COLUMNS} FROM entry WHERE parent = ? AND kind = ? ORDER BY used DESC LIMIT ?",
                    (parent, kind, CHILDREN),
                ).fetchall()
        return [_entry(row) for row in found]

    def get(self, key: bytes) -> Entry | None:
        with _damage():
            row = self._db.execute(f"SELECT {_COLUMNS} FROM entry WHERE key = ?", (key,)).fetchone()
        return None if row is None else _entry(row)

    def add(self, entry: Entry, *, now: float) -> None:
        """Add a row. Does nothing for a key that is there: equal keys mean equal content."""
        row = (
            *(entry.key, entry.kind, entry.parent, entry.start, entry.end, entry.tokens, pack_media(entry.media)),
            *(entry.size, entry.saves_seconds, entry.tip, now, _step(now)),
        )
        with _damage():
            self._db.execute(
                "INSERT OR IGNORE INTO entry (key, kind, parent, start, stop, tokens, media, bytes, saves_seconds, tip, created,"
                f" used) VALUES ({', '.join('?' * len(row))})",
                row,
            )

    def touch(self, keys: Iterable[bytes], *, now: float) -> None:
        """Note a use of each of `keys`, rounded to steps of `USED_SECONDS`."""
        used = _step(now)
        with self._transaction():
            self._db.executemany(
                "UPDATE entry SET used = ?, hits = hits + 1 WHERE key = ? AND used <> ?",
                [(used, key, used) for key in keys],
            )

    def remove(self, keys: Iterable[bytes]) -> None:
        with self._transaction():
            self._db.executemany("DELETE FROM entry WHERE key = ?", [(key,) for key in keys])

    def oldest(self, count: int) -> list[Entry]:
        """The `count` longest unused entries. Of those used in one step, the latest blocks of a sequence come first."""
        with _damage():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM entry ORDER BY used, start DESC LIMIT ?", (count,)
            ).fetchall()
        return [_entry(row) for row in rows]

    def between(self, first: bytes, last: bytes) -> list[bytes]:
        """Keys from `first` to `last`, both included."""
        with _damage():
            return [
                row[0] for row in self._db.execute("SELECT key FROM entry WHERE key BETWEEN ? AND ?", (first, last))
            ]

    @property
    def size(self) -> tuple[int, int]:
        """Bytes and entries."""
        with _damage():
            found: tuple[int, int] = self._db.execute("SELECT bytes, entries FROM total").fetchone()
        return found

    def sighted(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those of the prefixes `keys` that were seen before."""
        return self._among("sighting", keys)

    def sight(self, keys: Sequence[bytes], *, now: float) -> None:
        """Note prefixes as seen."""
        before = self.sighted(keys)
        new = [key for key in dict.fromkeys(keys) if key not in before]
        if not new:
            return
        with self._transaction():
            self._db.executemany("INSERT INTO sighting VALUES (?, ?)", [(key, now) for key in new])
            self._sightings += len(new)
            if self._sightings > SIGHTINGS:
                forget = self._sightings - SIGHTINGS * 9 // 10
                self._db.execute(
                    "DELETE FROM sighting WHERE key IN (SELECT key FROM sighting ORDER BY seen LIMIT ?)", (forget,)
                )
                self._sightings -= forget
            self._db.execute("UPDATE total SET sightings = ?", (self._sightings,))

    def _among(self, table: Literal["entry", "sighting"], keys: Sequence[bytes]) -> set[bytes]:
        found: set[bytes] = set()
        with _damage():
            for start in range(0, len(keys), KEYS_A_QUERY):
                part = keys[start : start + KEYS_A_QUERY]
                marks = ",".join("?" * len(part))
                found.update(
                    row[0] for row in self._db.execute(f"SELECT key FROM {table} WHERE key IN ({marks})", part)
                )
        return found

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with _damage():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        cause = f"{type(error).__name__}: {error}"
        extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
        code = sqlite3.SQLITE_CORRUPT if extended == sqlite3.SQLITE_IOERR_SHORT_READ else extended & 0xFF
        # SQLITE_ERROR is a missing table or column, for instance because the file was emptied.
        damaged = code in (
            sqlite3.SQLITE_CORRUPT,
            sqlite3.SQLITE_NOTADB,
            sqlite3.SQLITE_ERROR,
            sqlite3.SQLITE_CONSTRAINT,
        )
        raise (Damaged if damaged else IndexBusy)(cause) from error


def _check_version(version: int) -> None:
    if version not in (0, SCHEMA_VERSION):
        raise Damaged(f"the index has version {version}")


def pack_media(media: Iterable[Media]) -> bytes:
    return b"".join(_PLACE.pack(item.start, item.end, item.digest) for item in media)


def unpack_media(data: bytes) -> tuple[Media, ...]:
    return tuple(Media(*fields) for fields in _PLACE.iter_unpack(data))


def row_bytes(entry: Entry) -> int:
    """About what the database takes for an entry. The file does not shrink: removed rows make room for others."""
    return ROW_BYTES + len(entry.tokens) + len(entry.media) * _PLACE.size


def _entry(row: tuple[object, ...]) -> Entry:
    key, kind, parent, start, end, tokens, media, size, saves, tip, used, hits = row
    return Entry(key, kind, parent, start, end, tokens, unpack_media(media), size, saves, bool(tip), used, hits)  # type: ignore[arg-type]


def _step(moment: float) -> int:
    return int(moment) // USED_SECONDS * USED_SECONDS
