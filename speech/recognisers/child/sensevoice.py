"""SenseVoice in its own process: a bad model ends the process, which must not be a service.

`python -m speech.recognisers.child.sensevoice --fd N --model-dir DIR --threads N`
"""

from __future__ import annotations

import argparse
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from duet.channel import BlockingChannel, ChannelClosed
from duet.wire import Segment, Word
from speech import onnx_metadata
from speech.recognisers.child.messages import Recognise, Recognised, RecogniseFailed
from speech.splitter import SAMPLE_RATE
from speech.text import is_wide

MODEL_NAMES = ("model.int8.onnx", "model.onnx")
METADATA = frozenset(
    (
        *("vocab_size", "lfr_window_size", "lfr_window_shift", "normalize_samples", "with_itn", "without_itn"),
        *("lang_auto", "lang_zh", "lang_en", "lang_yue", "lang_ja", "lang_ko", "neg_mean", "inv_stddev"),
    )
)
"""The keys that sherpa-onnx reads; it ends the process when one is missing."""
MIN_SAMPLES = 400
"""A shorter clip is less than one analysis window."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="speech.recognisers.child.sensevoice", description="SenseVoice through sherpa-onnx."
    )
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
    """Raises RuntimeError or ValueError when files are missing or are not a SenseVoice model."""
    import sherpa_onnx

    model = next((model_dir / name for name in MODEL_NAMES if (model_dir / name).is_file()), None)
    tokens = model_dir / "tokens.txt"
    if model is None or not tokens.is_file():
        raise ValueError(f"it needs {' or '.join(MODEL_NAMES)}, and tokens.txt")
    onnx_metadata.require(model, METADATA, kind="SenseVoice model")
    return sherpa_onnx.OfflineRecognizer.from_sense_voice(
        model=str(model), tokens=str(tokens), num_threads=threads, language="", use_itn=True, provider="cpu"
    )


def recognise(recogniser: Any, request: Recognise) -> Recognised | RecogniseFailed:
    """One clip after another: on a CPU a batch is no faster, and with dynamic quantisation a clip's text would depend on the
    other clips."""
    try:
        segments = [_hear(recogniser, np.frombuffer(clip, dtype="<f4"), itn=request.itn) for clip in request.clips]
    except IndexError:  # a token that tokens.txt does not have
        return RecogniseFailed(request.id, "tokens.txt does not belong to this SenseVoice model")
    except RuntimeError as error:
        return RecogniseFailed(request.id, f"SenseVoice failed: {error}")
    return Recognised(request.id, tuple(segments))


def _hear(recogniser: Any, clip: np.ndarray[Any, np.dtype[np.float32]], *, itn: bool) -> Segment:
    seconds = len(clip) / SAMPLE_RATE
    if len(clip) < MIN_SAMPLES:
        return Segment(0.0, seconds, "")
    stream = recogniser.create_stream()
    stream.set_option("use_itn", "1" if itn else "0")
    stream.accept_waveform(SAMPLE_RATE, clip)
    recogniser.decode_stream(stream)
    return as_segment(stream.result, seconds)


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
    name = tag.removeprefix("<|").removesuffix("|>").lower()
    return None if name in ("", "emo_unknown", "unk", "event_unk", "nospeech") else name


def _words(tokens: list[str], timestamps: list[float], seconds: float) -> tuple[Word, ...]:
    """Tokens joined to words, each with the start of its first token.

    A word begins at a piece that starts with a space (or ▁), and at each piece in a script without spaces. Punctuation
    belongs to the word before it.
    """
    words: list[tuple[str, float]] = []
    for token, time in zip(tokens, timestamps, strict=False):
        piece = token.replace("▁", " ").strip()
        if not piece:
            continue
        if words and not _begins_word(token, piece, words[-1][0]):
            words[-1] = (words[-1][0] + piece, words[-1][1])
        else:
            words.append((piece, min(max(0.0, float(time)), seconds)))
    return tuple(Word(text, round(start, 2)) for text, start in words)


def _begins_word(token: str, piece: str, previous: str) -> bool:
    if unicodedata.category(piece[0])[0] == "P":
        return False
    return token[0] in " ▁" or is_wide(piece[0]) or is_wide(previous[-1])


if __name__ == "__main__":
    sys.exit(main())
