"""The SenseVoice recogniser in a process of its own: a bad model ends the process, and that must not be a service.

`python -m speech.sensevoice_child --fd N --model-dir DIR --threads N`
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from duet.channel import BlockingChannel, ChannelClosed
from duet.wire import Segment, Word
from speech.normalise import is_han
from speech.sensevoice_messages import Recognise, Recognised, RecogniseFailed
from speech.splitter import SAMPLE_RATE

MODEL_NAMES = ("model.int8.onnx", "model.onnx")
MIN_SAMPLES = 400
"""Below one analysis window the recogniser has nothing to hear."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="speech.sensevoice_child", description="SenseVoice through sherpa-onnx.")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    channel: BlockingChannel[Recognise] = BlockingChannel.from_fd(arguments.fd, Recognise)
    recogniser, problem = None, None
    try:
        recogniser = load(arguments.model_dir, arguments.threads)
    except (RuntimeError, OSError, ValueError) as error:
        problem = f"the SenseVoice model in {arguments.model_dir.name} cannot be loaded: {error}"
    try:
        while True:
            request = channel.receive()
            channel.send(RecogniseFailed(request.id, problem) if problem else recognise(recogniser, request))
    except ChannelClosed:
        return 0


def load(model_dir: Path, threads: int) -> Any:
    """Raises RuntimeError or ValueError for files that are missing or no SenseVoice model."""
    import sherpa_onnx

    model = next((model_dir / name for name in MODEL_NAMES if (model_dir / name).is_file()), None)
    tokens = model_dir / "tokens.txt"
    if model is None or not tokens.is_file():
        raise ValueError(f"it needs {' or '.join(MODEL_NAMES)}, and tokens.txt")
    # The library ends the process when metadata is missing: the key's name stands in the file if it is there.
    if b"lfr_window_size" not in model.read_bytes():
        raise ValueError(f"{model.name} is no SenseVoice model (its metadata is missing)")
    return sherpa_onnx.OfflineRecognizer.from_sense_voice(
        model=str(model), tokens=str(tokens), num_threads=threads, language="", use_itn=True, provider="cpu"
    )


def recognise(recogniser: Any, request: Recognise) -> Recognised | RecogniseFailed:
    clips = [np.frombuffer(clip, dtype="<f4") for clip in request.clips]
    try:
        streams = {}
        for i, clip in enumerate(clips):
            if len(clip) >= MIN_SAMPLES:
                streams[i] = recogniser.create_stream()
                streams[i].accept_waveform(SAMPLE_RATE, clip)
        recogniser.decode_streams(list(streams.values()))
    except RuntimeError as error:
        return RecogniseFailed(request.id, str(error))
    segments = []
    for i, clip in enumerate(clips):
        seconds = len(clip) / SAMPLE_RATE
        segments.append(as_segment(streams[i].result, seconds) if i in streams else Segment(0.0, seconds, ""))
    return Recognised(request.id, tuple(segments))


def as_segment(result: Any, seconds: float) -> Segment:
    text = result.text.strip()
    return Segment(
        start=0.0,
        end=seconds,
        text=text,
        language=_tag(result.lang) if text else None,
        emotion=_tag(result.emotion),
        event=_tag(result.event),
        words=_words(result.tokens, result.timestamps, seconds) if text else (),
    )


def _tag(tag: str) -> str | None:
    """`<|NEUTRAL|>` → neutral; unknown or absent → None."""
    name = re.sub(r"[<|>]", "", tag or "").lower()
    return None if name in ("", "emo_unknown", "unk", "event_unk", "nospeech") else name


def _words(tokens: list[str], timestamps: list[float], seconds: float) -> tuple[Word, ...]:
    """Tokens joined to words: a piece that begins with a space (or ▁) or is a Han character begins a new one."""
    words: list[tuple[str, float]] = []
    for token, time in zip(tokens, timestamps, strict=False):
        begins = token[:1] in (" ", "▁") or is_han(token.strip()[:1]) or not words or is_han(words[-1][0][-1:])
        piece = token.replace("▁", " ").strip()
        if not piece:
            continue
        if begins:
            words.append((piece, min(max(0.0, float(time)), seconds)))
        else:
            words[-1] = (words[-1][0] + piece, words[-1][1])
    return tuple(Word(text, round(start, 2)) for text, start in words)


if __name__ == "__main__":
    sys.exit(main())
