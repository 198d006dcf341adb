"""What the first bytes of a file say is never trusted with a place in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from speech.decoding.child.containers import breaks_off, declared_seconds, demuxers, lacks_its_index

HEADS = (
    b"RIFF\x00\x00\x00\x00WAVE",
    b"RIFF\xff\xff\xff\xffWAVEfmt ", b"fLaC", b"OggS", b"\x1aE\xdf\xa3", b"\x1aE\xdf\xa3\x80\x18S\x80g",
    b"\x00\x00\x00\x08ftyp", b"\x00\x00\x00\x01moov", b"\x00\x00\x00\x01mdat", b"#!AMR\n", b"FORM", b"caff\x00\x01\x00\x00",
    b"ID3\x04\x00\x00", b"\xff\xfb", b"",
)  # fmt: skip
WILD = st.sampled_from(
    [0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 56) - 2, (1 << 62) + 5, (1 << 63) - 1, (1 << 64) - 1]
)
LENGTHS = st.tuples(WILD, st.sampled_from(["big", "little"]), st.sampled_from([4, 8])).map(
    lambda given: (given[0] & ((1 << 8 * given[2]) - 1)).to_bytes(given[2], given[1])  # type: ignore[arg-type]
)
PIECES = st.one_of(
    LENGTHS, st.sampled_from([b"data", b"desc", b"moov", b"free", b"\x01", b"\x18S\x80g"]), st.binary(max_size=9)
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HEADS), st.lists(PIECES, max_size=12))
def test_no_length_in_a_file_makes_the_reader_fail(tmp_path: Path, head: bytes, pieces: list[bytes]) -> None:
    path = tmp_path / "a"
    path.write_bytes(head + b"".join(pieces))
    demuxers(path)
    lacks_its_index(path)
    for container in ("wav", "mp3", "mov", "matroska", "ogg", "caf", "aiff", "flac"):
        breaks_off(path, container)
        declared_seconds(path, container, 1.0)


@pytest.mark.parametrize("length", [(1 << 63) - 1, (1 << 62) + 5, 1 << 45])
def test_a_chunk_longer_than_any_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.caf"
    path.write_bytes(b"caff\x00\x01\x00\x00desc" + length.to_bytes(8) + bytes(100))
    assert not breaks_off(path, "caf")
