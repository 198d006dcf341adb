"""Decoding: every common format, loudness, and files that lie or are broken."""

from __future__ import annotations

import socket
import struct
import threading
from pathlib import Path

import av
import numpy as np
import pytest

from speech.decoding.child.decode import decode as decode_file
from speech.decoding.child.decode import probe
from speech.decoding.errors import InvalidAudio
from speech.decoding.pcm import open_pcm
from speech.decoding.trusted import samples as decode
from speech.splitter import SAMPLE_RATE
from tests import sounds

SECONDS = 3.0


def made(tmp_path: Path, kind: str, **changes: str) -> Path:
    rate = sounds.FORMATS[kind][2]
    return sounds.write(tmp_path / f"a.{kind}", sounds.tone(SECONDS, rate=rate), kind=kind, options=changes)


@pytest.mark.parametrize("kind", sounds.FORMATS)
def test_every_format_gives_the_same_tone_at_16_khz(tmp_path: Path, kind: str) -> None:
    samples = decode(made(tmp_path, kind), max_seconds=10)
    assert samples.dtype == np.float32
    assert len(samples) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.15)
    middle = samples[SAMPLE_RATE : 2 * SAMPLE_RATE]
    assert sounds.root_mean_square(middle) == pytest.approx(0.3 / 2**0.5, rel=0.06)  # LAME takes 5% off
    assert int(np.abs(np.fft.rfft(middle)).argmax()) == 440


@pytest.mark.parametrize("kind", ["wav", "m4a", "flac", "opus", "webm"])
def test_probe_reads_the_duration(tmp_path: Path, kind: str) -> None:
    assert probe(made(tmp_path, kind)) == pytest.approx(SECONDS, abs=0.1)


def test_stereo_of_equal_channels_is_as_loud_as_one_of_them(tmp_path: Path) -> None:
    one = sounds.tone(1.0)
    path = tmp_path / "stereo.wav"
    path.write_bytes(sounds.wav(sounds.pcm(np.stack([one, one])), channels=2))
    np.testing.assert_allclose(decode(path, max_seconds=10), one, atol=1e-4)


def test_downmix_is_the_mean_of_the_channels_that_hold_sound(tmp_path: Path) -> None:
    left, right = sounds.tone(1.0, hertz=300), sounds.tone(1.0, hertz=500)
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(sounds.pcm(np.stack([left, right])), channels=2))
    np.testing.assert_allclose(decode(path, max_seconds=10), (left + right) / 2, atol=1e-4)
    path.write_bytes(sounds.wav(sounds.pcm(np.stack([left, np.zeros_like(left)])), channels=2))
    np.testing.assert_allclose(decode(path, max_seconds=10), left, atol=1e-4)


def test_a_channel_of_six_is_heard_in_full(tmp_path: Path) -> None:
    channels = np.zeros((6, 44_100), np.float32)
    channels[2] = sounds.tone(1.0, amplitude=0.6, rate=44_100)
    path = sounds.write(tmp_path / "a.flac", channels, kind="flac")
    assert sounds.root_mean_square(decode(path, max_seconds=10)) == pytest.approx(0.6 / 2**0.5, rel=0.02)


def test_an_empty_pcm_file_opens_as_no_samples(tmp_path: Path) -> None:
    path = tmp_path / "empty.pcm"
    path.touch()
    assert len(open_pcm(path)) == 0


# What is no usable audio ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", [0x1234, 0x160A, 0x3579, 0x7FFF, 0])
def test_a_codec_that_nobody_knows_is_said_to_be_one(tmp_path: Path, tag: int) -> None:
    path = tmp_path / "a.wav"
    data = bytearray(sounds.wav(sounds.pcm(sounds.tone(1.0))))
    data[20:22] = tag.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(InvalidAudio, match="codec that cannot be read"):
        decode(path, max_seconds=10)
    with pytest.raises(InvalidAudio, match="codec that cannot be read"):
        probe(path)


RATES = [(1, "sample rate of 1 Hz"), (10_000_000, "sample rate of 10000000 Hz")]


@pytest.mark.parametrize(("rate", "said"), RATES)
def test_an_absurd_rate_is_refused_by_name(tmp_path: Path, rate: int, said: str) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(bytes(32_000), rate=rate))
    with pytest.raises(InvalidAudio, match=said) as caught:
        decode(path, max_seconds=100)
    assert (caught.value.status, caught.value.param) == (400, "file")


REFUSED = {
    "zero bytes": (b"", "empty"),
    "text": (b"This is not a recording.\n" * 100, "no audio that can be read"),
    "header alone": (sounds.wav(b""), "no audio could be decoded|can be read"),
    "a thousand channels": (sounds.wav(bytes(8000), channels=1000), "channels|can be read"),
    "zeros": (bytes(5000), "no audio that can be read"),
    "sync word and noise": (b"\xff\xfb" + bytes(range(256)) * 40, "damaged|decoded|can be read"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_audio_is_refused(tmp_path: Path, name: str) -> None:
    data, said = REFUSED[name]
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(InvalidAudio, match=said):
        decode(path, max_seconds=100)


def test_video_alone_is_no_audio(tmp_path: Path) -> None:
    path = tmp_path / "silent.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode(None))
    with pytest.raises(InvalidAudio, match="no audio stream"):
        probe(path)


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a", "flac", "opus", "webm"])
def test_a_truncated_file_is_read_as_far_as_it_goes_and_marked(tmp_path: Path, kind: str) -> None:
    path = made(tmp_path, kind, **({"movflags": "faststart"} if kind == "m4a" else {}))
    assert decode_file(path, tmp_path / "a.pcm", max_seconds=10).truncated is None
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 6 // 10])
    found = decode_file(path, tmp_path / "a.pcm", max_seconds=10)
    assert found.truncated is not None
    assert found.truncated.startswith("the file is truncated")
    assert 0.8 < found.seconds < 2.2


def test_an_mp4_that_was_cut_before_its_index_is_refused_and_told(tmp_path: Path) -> None:
    path = made(tmp_path, "m4a")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(InvalidAudio, match="index"):
        decode(path, max_seconds=10)


def test_a_file_that_lacks_its_last_bytes_is_whole_enough(tmp_path: Path) -> None:
    path = made(tmp_path, "wav")
    path.write_bytes(path.read_bytes()[:-4000])
    found = decode_file(path, tmp_path / "a.pcm", max_seconds=10)
    assert found.seconds == pytest.approx(SECONDS - 0.125)
    assert found.truncated is None


@pytest.mark.parametrize("length", [0, 0x7FFF_F000, 0xFFFF_FFFF])
def test_a_streamed_wav_does_not_know_its_length_and_is_whole(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(sounds.pcm(sounds.tone(2.0)), data_bytes=length))
    assert len(decode(path, max_seconds=10)) == 2 * SAMPLE_RATE


def test_an_mp3_without_frame_count_declares_nothing(tmp_path: Path) -> None:
    path = made(tmp_path, "mp3", write_xing="0")
    assert probe(path) is None
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(decode(path, max_seconds=10)) / SAMPLE_RATE == pytest.approx(SECONDS / 2, abs=0.1)


def test_an_mp3_with_a_cover_before_its_frame_count(tmp_path: Path) -> None:
    path = made(tmp_path, "mp3", write_id3v2="0")
    cover = 70_000
    size = bytes(cover >> shift & 0x7F for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\x04\0\0" + size + bytes(cover) + path.read_bytes())
    assert probe(path) == pytest.approx(SECONDS, abs=0.1)


def test_too_long_is_refused_by_the_header_and_by_what_comes_out(tmp_path: Path) -> None:
    with pytest.raises(InvalidAudio, match="3 s long; at most 2 s"):
        decode(made(tmp_path, "flac"), max_seconds=2)
    undeclared = made(tmp_path, "mp3", write_xing="0")
    with pytest.raises(InvalidAudio, match="longer than the 2 s"):
        decode(undeclared, max_seconds=2)


def test_nan_and_infinity_become_silence_and_full_scale(tmp_path: Path) -> None:
    samples = sounds.tone(1.0)
    samples[4000:4010] = np.nan
    samples[8000] = np.inf
    samples[9000:9010] = 1e30
    path = tmp_path / "a.wav"
    path.write_bytes(sounds.wav(samples.astype("<f4").tobytes(), bits=32, coding=3))
    decoded = decode(path, max_seconds=10)
    assert np.isfinite(decoded).all()
    assert np.abs(decoded).max() <= 1.0
    np.testing.assert_allclose(decoded[:4000], samples[:4000], atol=1e-4)


def test_damaged_packets_are_left_out(tmp_path: Path) -> None:
    path = made(tmp_path, "mp3")
    data = bytearray(path.read_bytes())
    for start in range(8000, 9000):
        data[start] ^= 0x5A
    path.write_bytes(data)
    assert len(decode(path, max_seconds=10)) / SAMPLE_RATE == pytest.approx(SECONDS, abs=0.25)


def _joined(tmp_path: Path, kind: str, channels: tuple[int, ...]) -> Path:
    """A second of tone for each entry, all in one file, each entry with so many channels."""
    one = sounds.tone(1.0, rate=sounds.FORMATS[kind][2])
    parts = [
        sounds.write(tmp_path / f"{i}.{kind}", np.stack([one] * count), kind=kind).read_bytes()
        for i, count in enumerate(channels)
    ]
    path = tmp_path / f"joined.{kind}"
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize(("kind", "channels"), [("opus", (1, 1)), ("mp3", (2, 1)), ("mp3", (1, 2)), ("aac", (2, 1))])
def test_joined_recordings_are_read_to_their_end(tmp_path: Path, kind: str, channels: tuple[int, ...]) -> None:
    samples = decode(_joined(tmp_path, kind, channels), max_seconds=10)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.2)
    for start in (0.4, 1.4):
        part = samples[int(start * SAMPLE_RATE) : int((start + 0.3) * SAMPLE_RATE)]
        assert sounds.root_mean_square(part) == pytest.approx(0.3 / 2**0.5, rel=0.08)


def test_what_ffmpeg_cannot_read_on_is_marked_as_cut(tmp_path: Path) -> None:
    found = decode_file(_joined(tmp_path, "opus", (2, 1)), tmp_path / "a.pcm", max_seconds=10)
    assert found.seconds == pytest.approx(1.0, abs=0.1)
    assert found.truncated is not None


# A file must not make us open another -----------------------------------------------------------------------------------


def _hostile(port: int, secret: Path) -> dict[str, bytes]:
    return {
        "remote playlist": f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:{port}/a.wav\n".encode(),
        "local playlist": f"#EXTM3U\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n".encode(),
        "concat script": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        "session description": f"v=0\nc=IN IP4 127.0.0.1\nm=audio {port} RTP/AVP 0\n".encode(),
        "dash manifest": f"<MPD><Period><BaseURL>http://127.0.0.1:{port}/</BaseURL></Period></MPD>".encode(),
        "playlist behind a RIFF head": b"RIFF" + struct.pack("<I", 99) + b"WAVE#EXTM3U\nhttp://127.0.0.1:%d/" % port,
    }


@pytest.mark.parametrize("name", _hostile(0, Path("/")))
def test_a_file_cannot_make_ffmpeg_open_another_file_or_address(tmp_path: Path, name: str) -> None:
    secret = tmp_path / "secret.wav"
    secret.write_bytes(sounds.wav(sounds.pcm(sounds.tone(1.0))))
    reached = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)

        def listen() -> None:
            try:
                server.accept()[0].close()
                reached.set()
            except TimeoutError:
                return

        listener = threading.Thread(target=listen)
        listener.start()
        path = tmp_path / "upload.wav"
        path.write_bytes(_hostile(server.getsockname()[1], secret)[name])
        with pytest.raises(InvalidAudio):
            decode(path, max_seconds=10)
        listener.join()
    assert not reached.is_set()


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("http:a%d.wav")
    path.write_bytes(sounds.wav(sounds.pcm(sounds.tone(1.0))))
    assert len(decode(path, max_seconds=10)) == SAMPLE_RATE
