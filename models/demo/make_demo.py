"""Make the recordings that ship with Duet: two clips and a bilingual meeting, all by synthetic voices, with exact truth.

    apt-get install espeak-ng && python models/demo/make_demo.py

Voices and wording are of the kind that the embedded recogniser was trained on, the glossary's terms are not: they are
what it mishears and the review repairs. A demonstration of mechanism, not a measurement of quality.
"""

from __future__ import annotations

import io
import json
import random
import re
import subprocess
import wave
from pathlib import Path

import av
import numpy as np

RATE = 16_000
FOLDER = Path(__file__).parent
VOICES = {"Chen": ("m3", 42, 165), "Lin": ("f2", 66, 172), "Alex": ("klatt2", 30, 160)}
"""Speaker: espeak-ng variant, pitch, words a minute."""
GLOSSARY = ["知识蒸馏", "召回率", "特征工程", "多租户", "幂等", "grafana", "terraform", "冒烟测试"]
TURNS = [
    ("Chen", "大家好，今天的会议主要讨论知识蒸馏。"),
    ("Lin", "我们昨天测试了模型，召回率很稳定。"),
    ("Alex", "the dashboard is slow, so we need to check grafana."),
    ("Chen", "因为时间不够，所以特征工程下周再优化。"),
    ("Lin", "后端团队负责多租户的接口。"),
    ("Alex", "we use terraform to deploy the cluster."),
    ("Chen", "冒烟测试还没有完成，因为网络不稳定。"),
    ("Lin", "请测试团队在周五之前完成冒烟测试。"),
    ("Alex", "can you review the terraform script tomorrow?"),
    ("Chen", "没问题，我明天就检查。"),
    ("Lin", "知识蒸馏大概需要两周才能上线。"),
    ("Alex", "the customer will approve the budget on friday."),
    ("Chen", "谁来跟进多租户的文档？"),
    ("Lin", "我负责文档，召回率的报告月底发给客户。"),
    ("Alex", "okay, next item is the grafana alert."),
    ("Chen", "好的，那就先部署监控，再升级数据库。"),
]
CLIPS = {
    "clip_zh": ("Lin", "我们明天下午讨论数据库的性能。"),
    "clip_en": ("Alex", "we need to test the new release on friday."),
}


def spoken(text: str, speaker: str) -> np.ndarray:
    """float32 mono 16 kHz. Chinese and English pieces by the voice of their language, one after the other."""
    variant, pitch, speed = VOICES[speaker]
    pieces = []
    for piece in re.findall(r"[A-Za-z][A-Za-z' ,.?]*|[^A-Za-z]+", text):
        han = bool(re.search(r"[\u4e00-\u9fff]", piece))
        if not re.search(r"\w", piece):
            continue
        voice = ("cmn-latn-pinyin" if han else "gmw/en-US") + "+" + variant
        command = [
            "espeak-ng",
            "-b",
            "1",
            "-v",
            voice,
            "-s",
            str(speed),
            "-p",
            str(pitch),
            "--stdout",
            pinyin(piece) if han else piece,
        ]
        raw = subprocess.run(command, capture_output=True, check=True).stdout
        with wave.open(io.BytesIO(_with_length(raw))) as file:
            rate = file.getframerate()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        pieces.append(trimmed(resampled(samples, rate)))
        pieces.append(np.zeros(int(0.04 * RATE), np.float32))
    return np.concatenate(pieces)


def _with_length(raw: bytes) -> bytes:
    """espeak-ng writes a stream: its header does not know the length."""
    size = len(raw) - 44
    return raw[:4] + (36 + size).to_bytes(4, "little") + raw[8:40] + size.to_bytes(4, "little") + raw[44:]


def pinyin(text: str) -> str:
    """The voice misreads Han characters in Debian's build: it gets pinyin with tone numbers."""
    from pypinyin import Style, lazy_pinyin

    return " ".join(lazy_pinyin(text, style=Style.TONE3, neutral_tone_with_five=True))


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE)
    return np.concatenate([out.to_ndarray()[0] for part in (frame, None) for out in resampler.resample(part)])


def trimmed(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.005)
    return samples[max(0, loud[0] - 160) : loud[-1] + 320] if len(loud) else samples


def write_flac(path: Path, samples: np.ndarray) -> None:
    with av.open(str(path), "w", format="flac") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        data = np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)
        for start in range(0, len(data), 4096):
            frame = av.AudioFrame.from_ndarray(data[None, start : start + 4096], format="s16", layout="mono")
            frame.sample_rate = RATE
            frame.pts = start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    rng, noise = random.Random(20), np.random.default_rng(20)
    for name, (speaker, text) in CLIPS.items():
        samples = np.concatenate([np.zeros(3200, np.float32), spoken(text, speaker), np.zeros(4800, np.float32)]) * 0.7
        write_flac(FOLDER / f"{name}.flac", samples + noise.normal(0, 0.0008, len(samples)).astype(np.float32))
        (FOLDER / f"{name}.json").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    pieces, turns, at = [np.zeros(int(0.6 * RATE), np.float32)], [], 0.6
    for speaker, text in TURNS:
        samples = spoken(text, speaker) * 0.7
        turns.append(
            {"start": round(at, 2), "end": round(at + len(samples) / RATE, 2), "speaker": speaker, "text": text}
        )
        gap = rng.uniform(0.7, 1.3)
        pieces += [samples, np.zeros(int(gap * RATE), np.float32)]
        at += len(samples) / RATE + int(gap * RATE) / RATE
    meeting = np.concatenate(pieces)
    write_flac(FOLDER / "meeting.flac", meeting + noise.normal(0, 0.0008, len(meeting)).astype(np.float32))
    truth = {"title": "Project review", "seconds": round(len(meeting) / RATE, 2), "glossary": GLOSSARY, "turns": turns}
    (FOLDER / "meeting.json").write_text(json.dumps(truth, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
