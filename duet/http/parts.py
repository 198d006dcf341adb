"""The parts of a form as they come: texts are kept, uploads go to disk, and what is wrong with one is said by its name."""

from __future__ import annotations

import asyncio
import codecs
import io
import os
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fastapi import UploadFile
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData
from starlette.datastructures import UploadFile as StarletteUpload

from duet.errors import InvalidRequest, PayloadTooLarge

MAX_PARTS = 1000
MAX_TEXT_BYTES, MAX_ALL_TEXT_BYTES = 1 << 20, 4 << 20
"""Of one field that is no upload, and of all such fields together. A route has smaller bounds for most of them."""
MAX_PART_HEADERS, MAX_PART_HEADER_BYTES = 16, 4096
WRITE_BYTES = 1 << 20
"""An upload is written in pieces of this size."""
HOW = "let your HTTP library write the form, as `curl -F file=@recording.wav` does"

_LONG_NAME = re.compile(rb"filename\*\s*=\s*\"?[^;'\"]*'[^;'\"]*'([^;\"]*)", re.IGNORECASE)
_AS_IS = frozenset({"", "7bit", "8bit", "binary"})
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL
_UTF8 = frozenset({"utf-8", "utf8"})


class Upload(UploadFile):
    """An upload as a file of the spool. `path` is alone in a folder that its request may fill; both go when the request ends."""

    path: Path


@dataclass(frozen=True)
class Fields:
    """What a route declares: names of uploads and of texts, and those of texts that may not be repeated."""

    uploads: frozenset[str]
    texts: frozenset[str]
    single: frozenset[str]


class Parts:
    """Takes a form's parts as they come. `place` says in words where it is."""

    def __init__(self, fields: Fields, room: Path, files: AsyncExitStack, max_bytes: int) -> None:
        self._fields, self._room, self._files, self._max_bytes = fields, room, files, max_bytes
        self._items: list[tuple[str, str | StarletteUpload]] = []
        self._parts = self._text_bytes = self._waiting_bytes = 0
        self._waiting: list[tuple[Upload, bytes]] = []
        self._headers: list[tuple[bytearray, bytearray]] = []
        self._upload: UploadFile | None = None
        self._name, self._text, self._charset = "", bytearray(), "utf-8"
        self._texts: dict[str, str] = {}
        self._in_headers = self._ended = False

    # The parser's calls, in the order of a part.

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"the form has more than {MAX_PARTS} fields")
        self._headers, self._upload, self._text, self._in_headers = [], None, bytearray(), True

    def on_header_begin(self) -> None:
        self._headers.append((bytearray(), bytearray()))

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][0].extend(data[start:end])

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[-1][1].extend(data[start:end])

    def on_headers_finished(self) -> None:
        self._in_headers = False
        headers = {bytes(name).lower(): bytes(value) for name, value in self._headers}
        disposition = headers.get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        if b"name" not in options:
            raise InvalidRequest(f"part {self._parts} of the form has no name in its Content-Disposition: {HOW}")
        self._name = _decoded(options[b"name"], f"the name of part {self._parts}", "utf-8")
        coding = headers.get(b"content-transfer-encoding", b"").strip().lower().decode("latin-1")
        if coding not in _AS_IS:
            raise InvalidRequest(
                f"{self._shown}: sent in {coding[:32]!r}; send its bytes as they are", param=self._shown
            )
        _, kind = parse_options_header(headers.get(b"content-type", b""))
        self._charset = kind.get(b"charset", b"utf-8").decode("latin-1").lower()
        filename = _filename(disposition, options)
        if filename is not None:
            self._begin_upload(filename)
        elif self._name in self._fields.uploads:
            raise InvalidRequest(
                f"{self._name}: sent as text; an upload is a part with a file name (filename=… in its Content-Disposition), "
                f"as `curl -F {self._name}=@recording.wav` writes it",
                param=self._name,
            )

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._upload is None:
            self._text_bytes += end - start
            if len(self._text) + end - start > MAX_TEXT_BYTES:
                raise PayloadTooLarge(f"{self._shown}: longer than {MAX_TEXT_BYTES} bytes", param=self._shown)
            if self._text_bytes > MAX_ALL_TEXT_BYTES:
                raise PayloadTooLarge(f"the texts of the form are longer than {MAX_ALL_TEXT_BYTES} bytes together")
            self._text.extend(data[start:end])
        elif isinstance(self._upload, Upload):
            self._upload.size = (self._upload.size or 0) + end - start
            if self._upload.size > self._max_bytes:
                raise PayloadTooLarge(f"the file is larger than {self._max_bytes} bytes", param=self._name)
            self._waiting.append((self._upload, data[start:end]))
            self._waiting_bytes += end - start

    def on_part_end(self) -> None:
        if self._upload is None:
            text = _decoded(bytes(self._text), self._shown, self._charset)
            if self._name in self._fields.single and self._texts.setdefault(self._name, text) != text:
                raise InvalidRequest(f"{self._name}: sent twice with different values", param=self._name)
            self._items.append((self._name, text))
        else:
            self._items.append((self._name, self._upload))

    def on_end(self) -> None:
        self._ended = True

    # What the parts become.

    async def write(self, *, last: bool = False) -> None:
        """Write what waits to disk: long pieces in a thread, the rest of an upload at once, as the thread's turn costs more."""
        if self._waiting_bytes < WRITE_BYTES and not last:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if last:
            _write_all(waiting)
        else:
            await asyncio.to_thread(_write_all, waiting)

    def form(self) -> FormData:
        """The whole form. Raises `InvalidRequest` for one that was cut off or has no upload."""
        if not self._ended:
            raise self.unreadable()
        for name in self._fields.uploads - {name for name, _ in self._items}:
            raise InvalidRequest(
                f"{name}: is missing; send the recording as a field {name} with a file name", param=name
            )
        return FormData(self._items)

    def unreadable(self) -> InvalidRequest:
        """Why the parser cannot go on, by where it is."""
        if self._ended:
            return InvalidRequest(f"the form goes on after its last boundary: {HOW}")
        if not self._parts:
            return InvalidRequest(
                f"the body is no form with the boundary that the header Content-Type names: {HOW}", param="Content-Type"
            )
        if self._in_headers:
            bound = f"at most {MAX_PART_HEADERS} of {MAX_PART_HEADER_BYTES} bytes"
            return InvalidRequest(f"the headers of part {self._parts} of the form cannot be read ({bound}): {HOW}")
        return InvalidRequest(
            f"the form ends in its field {self._shown!r}, before its last boundary: the upload was cut off, or the boundary "
            f"differs from the one that the header Content-Type names",
            param=self._shown,
        )

    @property
    def _shown(self) -> str:
        return self._name[:64]

    def _begin_upload(self, filename: str) -> None:
        if self._name in self._fields.texts:
            raise InvalidRequest(
                f"{self._name}: sent as an upload; it is text, so its part has no file name", param=self._name
            )
        if self._name not in self._fields.uploads:
            self._upload = UploadFile(io.BytesIO(), filename=filename)  # kept for its name alone
            return
        if any(name == self._name for name, _ in self._items):
            raise InvalidRequest(f"{self._name}: sent twice; a request takes one recording", param=self._name)
        path = self._room / self._name
        file = self._files.enter_context(os.fdopen(os.open(path, _NEW, 0o600), "w+b", buffering=0))
        self._upload = Upload(file, size=0, filename=filename)
        self._upload.path = path


def _write_all(waiting: list[tuple[Upload, bytes]]) -> None:
    for upload, pieces in groupby(waiting, key=itemgetter(0)):
        left = memoryview(b"".join(piece for _, piece in pieces))
        while left:
            left = left[upload.file.write(left) :]


def _filename(disposition: bytes, options: dict[bytes, bytes]) -> str | None:
    """What a part says its file is called; None for a part that is no upload. Older clients write other names than ASCII ones as
    `filename*=utf-8''...` alone, which RFC 7578 forbids."""
    if (name := options.get(b"filename")) is not None:
        return name.decode(errors="replace")
    found = _LONG_NAME.search(disposition)
    return unquote_to_bytes(found.group(1)).decode(errors="replace") if found else None


def _decoded(raw: bytes, name: str, charset: str) -> str:
    """A text of the form: UTF-8, or a file that Windows saved as UTF-16 with its mark. Raises `InvalidRequest` for any other."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and len(raw) % 2 == 0:
        return raw.decode("utf-16", errors="replace")
    if not raw.isascii() and charset not in _UTF8:
        raise InvalidRequest(f"{name}: sent as {charset[:32]!r}; send text as UTF-8", param=name)
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: is not UTF-8 (byte {error.start}); send text as UTF-8", param=name) from error
