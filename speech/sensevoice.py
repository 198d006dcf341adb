"""Short speech recognition: SenseVoice in a supervised child process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

import models
from duet.errors import Unavailable
from duet.settings import Settings
from duet.supervise.service import Service
from duet.wire import Segment, Word
from speech.sensevoice_messages import Recognise, Recognised, RecogniseFailed
from speech.splitter import SAMPLE_RATE

LANGUAGES = frozenset({"zh", "en", "yue", "ja", "ko"})
MAX_CLIP_SECONDS = 30.0
BATCH_CLIPS = 8
"""Clips of one message: bounds its size and how long another caller waits."""
TIMEOUT_SECONDS = 120.0
EMBEDDED_ID = "duet-tiny-asr"


def find_sensevoice(settings: Settings) -> Path | None:
    """The model's folder: set, embedded, or $DUET_HOME/models/sensevoice; None when there is none."""
    if settings.router.sensevoice_dir is not None:
        return settings.router.sensevoice_dir
    if settings.embedded:
        return models.EMBEDDED / EMBEDDED_ID
    folder = settings.home / "models" / "sensevoice"
    return folder if folder.is_dir() else None


class SenseVoice:
    """Safe to call concurrently. The child is started by the first call, and again after it died."""

    def __init__(self, model_dir: Path, *, threads: int = 2) -> None:
        arguments = ["--model-dir", str(model_dir), "--threads", str(threads)]
        self._service: Service[Recognised | RecogniseFailed] = Service(
            "speech.sensevoice_child", arguments, Recognised | RecogniseFailed, name="sensevoice"
        )
        # The child does one batch after another: waiting our turn here keeps the wait out of the call's time limit.
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        return self._service.pid

    async def transcribe(
        self, clips: Sequence[np.ndarray[Any, np.dtype[np.float32]]], *, itn: bool = True
    ) -> list[Segment]:
        """One segment a clip of at most 30 s, times from the clip's start. `itn`: digits and punctuation.

        Raises `WorkerLost` if the child dies meanwhile, `Unavailable` if the model cannot be used, and ValueError for a
        longer clip: cutting is the caller's (`speech.splitter`).
        """
        longest = max((len(clip) for clip in clips), default=0) / SAMPLE_RATE
        if longest > MAX_CLIP_SECONDS:
            raise ValueError(f"a clip of {longest:.1f} s; at most {MAX_CLIP_SECONDS:.0f} s are recognised at once")
        segments: list[Segment] = []
        for start in range(0, len(clips), BATCH_CLIPS):
            batch = tuple(np.asarray(clip, dtype="<f4").tobytes() for clip in clips[start : start + BATCH_CLIPS])
            async with self._turn:
                request = Recognise(secrets.token_hex(8), batch, itn)
                answer = await self._service.call(request, timeout_seconds=TIMEOUT_SECONDS)
            if isinstance(answer, RecogniseFailed):
                raise Unavailable(answer.message)
            segments += answer.segments
        return segments

    async def close(self) -> None:
        await self._service.close()


def shifted(segment: Segment, seconds: float) -> Segment:
    """The segment with all its times later by `seconds`."""
    words = tuple(Word(w.text, w.start + seconds, None if w.end is None else w.end + seconds) for w in segment.words)
    return msgspec.structs.replace(segment, start=segment.start + seconds, end=segment.end + seconds, words=words)
