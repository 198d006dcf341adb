"""What the first bytes of an audio file say: which demuxer reads it, and how much audio it should hold.

File names are not trusted. FFmpeg hides two facts that tell whether a file is whole: it silently cuts the length that a WAV
header declares to what is there, and it guesses the length of an MP3 without a Xing header from the first frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

_FTYP_LIKE = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STREAMED_FROM = 0x7FFF_0000
"""Programs that do not know the length write a value from here on: 0x7FFFF000 (espeak-ng, sox), 0xFFFFFFFF (ffmpeg)."""
_MAX_CHUNKS = 1000
_LARGEST_PAGE = 27 + 255 + 255 * 255


def demuxers(path: Path) -> tuple[str, ...]:
    """FFmpeg's demuxers to try, best first; empty when the file is no known kind of audio. No others are ever used: no
    playlists, devices or protocols."""
    with path.open("rb") as file:
        head = file.read(64)
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return ("wav",)
    if head[:4] == b"fLaC":
        return ("flac",)
    if head[:4] == b"OggS":
        return ("ogg",)
    if head[:4] == b"\x1aE\xdf\xa3":
        return ("matroska",)
    if head[4:8] in _FTYP_LIKE:
        return ("mov",)
    if head[:5] == b"#!AMR":
        return ("amr",)
    if head[:4] == b"FORM":
        return ("aiff",)
    if head[:4] == b"caff":
        return ("caf",)
    if head[:3] == b"ID3":
        return ("mp3", "aac")
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0:
        # A sync word: layer bits 00 are ADTS AAC, others MPEG audio.
        return ("aac", "mp3") if head[1] & 0x06 == 0 else ("mp3",)
    return ()


def declared_seconds(path: Path, container: str, reported: float | None) -> float | None:
    """The duration that the file itself claims. `reported` is FFmpeg's figure; None when neither says."""
    if reported is None:
        return None
    if container == "wav":
        return max(reported, _truncated_wav_seconds(path))
    if container == "mp3":
        return reported if _counts_its_frames(path) else None
    if container in ("aac", "amr"):  # bare frames: FFmpeg guesses from the first one
        return None
    return reported


def lacks_its_index(path: Path) -> bool:
    """Whether an MP4 file ends before its `moov` box, which says where the audio is: a recorder that was interrupted wrote it
    last, or would have."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(_MAX_CHUNKS):
            head = file.read(8)
            length = int.from_bytes(head[:4])
            if len(head) < 8 or head[4:] == b"moov":
                return len(head) < 8 or file.tell() - 8 + length > size
            if length == 1:
                length = int.from_bytes(file.read(8)) - 8
            if length < 8:
                return False
            _skip(file, length - 8)
    return False


def breaks_off(path: Path, container: str) -> bool:
    """Whether the file ends before an element does that holds its audio: Matroska's Segment, an Ogg page, CAF's data. Other
    containers declare how long their audio is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if container == "matroska":
            end = _segment_end(file)
            return end is not None and end > size
        if container == "caf":
            return _data_end(file) > size
        return container == "ogg" and _page_breaks_off(file, size)


def _skip(file: BinaryIO, length: int) -> None:
    """Go on by `length` bytes, which the file itself gave: at most to its end, since a file system refuses wilder places."""
    at = file.tell()
    end = file.seek(0, 2)
    file.seek(min(at + length, end))


def _data_end(file: BinaryIO) -> int:
    """Where CAF's data chunk ends; 0 when it is not found or does not say.
    https://developer.apple.com/library/archive/documentation/MusicAudio/Reference/CAFSpec/CAF_spec/CAF_spec.html"""
    file.seek(8)
    for _ in range(_MAX_CHUNKS):
        head = file.read(12)
        length = int.from_bytes(head[4:], "big", signed=True)
        if len(head) < 12 or length < 0:
            return 0
        if head[:4] == b"data":
            return file.tell() + length
        _skip(file, length)
    return 0


def _segment_end(file: BinaryIO) -> int | None:
    """Where the Segment ends (RFC 9559); None when that is unknown, as in a stream."""
    for wanted in (0x1A45DFA3, 0x18538067):
        identifier, _ = _number(file, keep_marker=True)
        length, bits = _number(file, keep_marker=False)
        if identifier != wanted or length == (1 << bits) - 1:
            return None
        if wanted == 0x1A45DFA3:
            _skip(file, length)
    return file.tell() + length


def _number(file: BinaryIO, *, keep_marker: bool) -> tuple[int, int]:
    """A number of variable length (RFC 8794, 4), and how many bits it has; (-1, 0) where there is none."""
    first = file.read(1)
    if not first or first[0] == 0:
        return -1, 0
    length = 9 - first[0].bit_length()
    number = int.from_bytes(first + file.read(length - 1))
    return (number if keep_marker else number & ((1 << 7 * length) - 1)), 7 * length


def _page_breaks_off(file: BinaryIO, size: int) -> bool:
    """Whether the last page (RFC 3533, 6) is longer than what is there of it."""
    file.seek(max(0, size - _LARGEST_PAGE))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return size > _LARGEST_PAGE
    count = tail[at + 26] if len(tail) > at + 26 else 0
    lengths = tail[at + 27 : at + 27 + count]
    return len(tail) < at + 27 + count + sum(lengths) or len(tail) < at + 27


def _truncated_wav_seconds(path: Path) -> float:
    """The seconds that the header of a cut WAV file promises; 0 when it is whole, streamed, or not understood."""
    size, bytes_a_second = path.stat().st_size, 0
    with path.open("rb") as file:
        if file.read(4) != b"RIFF":
            return 0.0
        file.seek(12)
        for _ in range(_MAX_CHUNKS):
            head = file.read(8)
            length = int.from_bytes(head[4:], "little")
            if len(head) < 8:
                break
            if head[:4] == b"data":
                cut = file.tell() + length > size and length < _STREAMED_FROM
                return length / bytes_a_second if cut and bytes_a_second else 0.0
            body = file.read(min(length, 16))
            if head[:4] == b"fmt " and len(body) == 16:
                bytes_a_second = int.from_bytes(body[8:12], "little")
            _skip(file, length - len(body) + length % 2)
    return 0.0


def _counts_its_frames(path: Path) -> bool:
    """Whether an MP3's first frame is a header (Xing, Info or VBRI) that counts the frames of this file.

    In joined files the header of the first part counts that part alone; the length in bytes that it gives shows this.
    """
    with path.open("rb") as file:
        _skip_id3(file)
        present = path.stat().st_size - file.tell()
        start = file.read(2048)
    if b"VBRI" in start:
        return True
    at = max(start.find(b"Xing"), start.find(b"Info"))
    if at < 0 or len(start) < at + 16:
        return False
    flags = int.from_bytes(start[at + 4 : at + 8])
    has_frames, has_bytes = bool(flags & 1), bool(flags & 2)
    length = int.from_bytes(start[at + 12 : at + 16]) if has_bytes else present
    return has_frames and present < 1.1 * length


def _skip_id3(file: BinaryIO) -> None:
    """An ID3v2 tag's length has seven bits a byte (https://id3.org/id3v2.4.0-structure)."""
    head = file.read(10)
    if head[:3] != b"ID3" or len(head) < 10:
        file.seek(0)
        return
    length = 0
    for byte in head[6:10]:
        length = length << 7 | byte & 0x7F
    file.seek(10 + length)
