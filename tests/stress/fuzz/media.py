"""Media files of every kind that the services read, and seeded damage to them."""

from __future__ import annotations

import io
import random
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import av
import numpy as np
from PIL import Image

import models

SECONDS = 1.6
"""Long enough for one word of the clip, short enough for thousands of cases."""
Use = Literal["audio", "picture"]
Damage = Callable[[random.Random, bytes, Mapping[str, bytes]], bytes]

_WILD = (
    0, 1, 2, 7, 8, 16, 63, 64, 65, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0,
    0xFFFF_FFFF,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One damaged file. `number` and the seed make it again."""

    number: int
    use: Use
    name: str
    damage: tuple[str, ...]
    data: bytes

    def __str__(self) -> str:
        return f"media {self.number}: {self.name} ({', '.join(self.damage) or 'whole'}), {len(self.data)} bytes"


def case(seed: int, number: int, files: Mapping[str, bytes]) -> Case:
    """Case `number` of a run: one of `files` (from `whole_files`) with one to four kinds of damage. One in thirty stays
    whole, so that a run also shows right results."""
    random_ = random.Random(f"{seed}/{number}")
    name = random_.choice(sorted(files))
    data, done = files[name], []
    for _ in range(0 if random_.random() < 1 / 30 else random_.choice((1, 1, 1, 2, 2, 3, 4))):
        damage = random_.choice((*DAMAGE, *_OF_ONE_FORMAT.get(name.split(" ")[0], ())))
        data = damage(random_, data, files) if data else data
        done.append(damage.__name__)
    return Case(number, "picture" if name.startswith("picture") else "audio", name, tuple(done), data)


def whole_files() -> dict[str, bytes]:
    """Undamaged files by name, made from the start of a shipped clip: each container with codecs that people send."""
    clip = _clip()
    found = {
        "wav s16": _encoded(clip, "wav", "pcm_s16le"),
        "wav float": _encoded(clip, "wav", "pcm_f32le"),
        "wav mulaw": _encoded(clip, "wav", "pcm_mulaw", rate=8000),
        "wav adpcm": _encoded(clip, "wav", "adpcm_ima_wav"),
        "wav 8 channels": _wav_of_channels(clip, 8),
        "wav 16 channels": _wav_of_channels(clip, 16),
        "flac": _encoded(clip, "flac", "flac"),
        "mp3": _encoded(clip, "mp3", "libmp3lame"),
        "m4a aac": _encoded(clip, "ipod", "aac"),
        "m4a alac": _encoded(clip, "ipod", "alac"),
        "mp4 with video": _encoded(clip, "mp4", "aac", video="mpeg4"),
        "ogg opus": _encoded(clip, "ogg", "libopus", rate=48000),
        "webm opus": _encoded(clip, "webm", "libopus", rate=48000),
        "mkv aac with video": _encoded(clip, "matroska", "aac", video="mpeg4"),
        "aiff": _encoded(clip, "aiff", "pcm_s16be"),
        "caf": _encoded(clip, "caf", "pcm_s16le"),
        "aac": _encoded(clip, "adts", "aac"),
        "amr": _encoded(clip, "amr", "libopencore_amrnb", rate=8000),
    }
    return found | {f"picture {name}": data for name, data in _pictures().items()}


# Whole files ----------------------------------------------------------------------------------------------------------


def _clip() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Mono at 16 kHz."""
    with av.open(str(models.CARDS / "demo" / "clip_en.flac")) as container:
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=16000)
        blocks = [out.to_ndarray()[0] for frame in container.decode(audio=0) for out in resampler.resample(frame)]
    return np.concatenate(blocks)[: int(SECONDS * 16000)]


def _encoded(
    clip: np.ndarray[Any, np.dtype[np.float32]],
    container: str,
    codec: str,
    *,
    rate: int = 16000,
    video: str | None = None,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container, options={"fflags": "+bitexact"}) as output:
        pictures = output.add_stream(video, rate=5) if video else None
        if pictures is not None:
            pictures.width, pictures.height, pictures.pix_fmt = 64, 64, "yuv420p"
        stream: Any = output.add_stream(codec, rate=rate, layout="mono")
        if pictures is not None:
            for _ in range(int(SECONDS * 5)):
                output.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
            output.mux(pictures.encode(None))
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clip[None]), format="fltp", layout="mono")
        frame.sample_rate = 16000
        if not stream.codec_context.is_open:
            stream.codec_context.open()
        resampler = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=stream.frame_size)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _wav_of_channels(clip: np.ndarray[Any, np.dtype[np.float32]], channels: int) -> bytes:
    data = np.repeat((clip * 32767).astype("<i2")[:, None], channels, axis=1).tobytes()
    fmt = struct.pack("<HHIIHH", 1, channels, 16000, 32000 * channels, 2 * channels, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _pictures() -> dict[str, bytes]:
    ramp = np.linspace(0, 255, 96 * 64).reshape(64, 96).astype(np.uint8)
    colour = Image.fromarray(np.stack([ramp, ramp[::-1], ramp[:, ::-1]], axis=2))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (colour, "PNG", {}),
        "png alpha": (colour.convert("RGBA"), "PNG", {}),
        "png palette": (colour.quantize(16), "PNG", {"transparency": 3}),
        "png 16 bit": (Image.fromarray(ramp.astype(np.uint16) * 257), "PNG", {}),
        "jpeg": (colour, "JPEG", {"exif": exif}),
        "jpeg progressive": (colour, "JPEG", {"progressive": True}),
        "jpeg cmyk": (colour.convert("CMYK"), "JPEG", {}),
        "webp": (colour, "WEBP", {}),
        "webp animated": (colour, "WEBP", {"save_all": True, "append_images": [colour.rotate(90)]}),
        "gif": (colour.quantize(32), "GIF", {"save_all": True, "append_images": [colour.rotate(90).quantize(32)]}),
    }
    found = {}
    for name, (image, form, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        found[name] = buffer.getvalue()
    return found


# Damage ---------------------------------------------------------------------------------------------------------------


def flipped_bits(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(random_.choice((1, 4, 16, 200))):
        out[random_.randrange(len(out))] ^= 1 << random_.randrange(8)
    return bytes(out)


def flipped_bits_of_the_head(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    out = bytearray(data)
    for _ in range(random_.choice((1, 2, 8))):
        out[random_.randrange(min(len(out), 256))] ^= 1 << random_.randrange(8)
    return bytes(out)


def cut(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    return data[: random_.choice((random_.randrange(len(data)), random_.randrange(min(len(data), 100)), len(data) - 1))]


def beheaded(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    return data[random_.randrange(1, min(len(data), 500) + 1) :]


def a_wild_number(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """Where lengths and counts stand: a number of 2, 4 or 8 bytes, either byte order, most often in the head."""
    size = random_.choice((2, 4, 4, 4, 8))
    at = random_.randrange(max(1, min(len(data), random_.choice((64, 512, len(data)))) - size))
    value = random_.choice(_WILD) if size != 8 else random_.choice((*_WILD, 1 << 40, (1 << 62) + 5, (1 << 64) - 1))
    number = (value & ((1 << 8 * size) - 1)).to_bytes(size, random_.choice(("big", "little")))
    return data[:at] + number + data[at + size :]


def a_hole(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    at = random_.randrange(len(data))
    length = random_.choice((1, 100, 4000))
    return data[:at] + random_.choice((b"", bytes(length), b"\xff" * length)) + data[at + length :]


def a_piece_twice(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    at, length = random_.randrange(len(data)), random_.choice((4, 64, 2000))
    return data[: at + length] + data[at : at + length] * random_.choice((1, 3, 50)) + data[at + length :]


def spliced(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    other = others[random_.choice(sorted(others))]
    return data[: random_.randrange(len(data))] + other[random_.randrange(len(other)) :]


def in_front_of_another(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    return data + others[random_.choice(sorted(others))]


def noise(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    at = random_.randrange(len(data))
    return data[:at] + random_.randbytes(random_.choice((10, 1000, 20000)))


DAMAGE: tuple[Damage, ...] = (
    flipped_bits, flipped_bits_of_the_head, cut, beheaded, a_wild_number, a_wild_number, a_hole, a_piece_twice, spliced,
    in_front_of_another, noise,
)  # fmt: skip


def wav_field(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """The format tag, channels, rate, bytes a second, block size, bits, or the length of a chunk."""
    at, size = random_.choice(((4, 4), (16, 4), (20, 2), (22, 2), (24, 4), (28, 4), (32, 2), (34, 2), (40, 4)))
    values = (*_WILD, 3, 6, 0xFFFE, 0x55, 4000, 3999, 384000, 384001, 12, 24, 32)
    number = (random_.choice(values) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
    return data[:at] + number + data[at + size :]


def atom_length(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """The length of an atom of MP4, or a count within one."""
    names = (
        b"moov", b"trak", b"mdia", b"stbl", b"stsz", b"stco", b"stts", b"stsc", b"stsd", b"mdat", b"edts", b"elst", b"mvhd",
        b"mdhd", b"tkhd", b"esds", b"mp4a", b"udta", b"ftyp",
    )  # fmt: skip
    at = data.find(random_.choice(names))
    if at < 4:
        return flipped_bits(random_, data, {})
    at += random_.choice((-4, -4, 0, 4, 8, 12, 16, 20, 24))
    return data[:at] + random_.choice(_WILD).to_bytes(4, "big") + data[at + 4 :]


def element_size(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """The size of an EBML element: https://www.rfc-editor.org/rfc/rfc8794."""
    ids = (
        b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x15\x49\xa9\x66", b"\x16\x54\xae\x6b", b"\x1f\x43\xb6\x75", b"\xae",
        b"\xe1", b"\xb5", b"\x9f", b"\x63\xa2", b"\xa3", b"\xe7", b"\x1c\x53\xbb\x6b", b"\x44\x89", b"\x56\xaa",
    )  # fmt: skip
    wanted = random_.choice(ids)
    at = data.find(wanted)
    if at < 0:
        return flipped_bits(random_, data, {})
    at += len(wanted)
    size = random_.choice(
        (b"\x80", b"\xff", b"\x01\xff\xff\xff\xff\xff\xff\xff", b"\x08\x7f\xff\xff\xff", b"\xfe", b"\x00")
    )
    return data[:at] + size + data[at + random_.choice((0, 1, len(size))) :]


def page_field(random_: random.Random, data: bytes, others: Mapping[str, bytes]) -> bytes:
    """A field of an Ogg page: https://www.rfc-editor.org/rfc/rfc3533#section-6."""
    starts = [at for at in range(len(data) - 4) if data[at : at + 4] == b"OggS"]
    if not starts:
        return flipped_bits(random_, data, {})
    at = random_.choice(starts) + random_.choice((4, 5, 6, 10, 13, 14, 18, 22, 26, 27))
    return data[:at] + random_.randbytes(random_.choice((1, 4, 8))) + data[at + 8 :]


_OF_ONE_FORMAT: dict[str, tuple[Damage, ...]] = {
    "wav": (wav_field,) * 6,
    "m4a": (atom_length,) * 6,
    "mp4": (atom_length,) * 6,
    "webm": (element_size,) * 6,
    "mkv": (element_size,) * 6,
    "ogg": (page_field,) * 4,
}
