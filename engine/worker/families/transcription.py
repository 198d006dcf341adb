"""Qwen3-ASR: long audio in chunks, a token budget for each chunk, and a check afterwards whether its text can be complete.

The library is called directly, because no stock server hands the prompt or the hotwords to the model, and because one budget for
a whole file cuts long audio short without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rapidfuzz import fuzz

from duet.errors import ContextTooLong, InvalidRequest
from duet.wire import Segment, Transcript, Usage
from engine.types import Transcribed, TranscriptionRequest
from engine.worker.model import Loaded
from engine.worker.scheduler.jobs import Job
from speech.languages import heard
from speech.splitter import SAMPLE_RATE, Span, cut

CHUNK_SECONDS = 30.0
TOKENS_PER_SECOND = 20.0
"""Twice what fast speech needs in any language of the model."""
MIN_BUDGET_TOKENS = 64
MIN_CLIP_SAMPLES = SAMPLE_RATE // 10
MIN_HALF_SECONDS = 1.0
MAX_PROMPT_TOKENS = 10_000
"""What the model's authors allow for context. It is less where the model has fewer positions."""
AUDIBLE = 0.01
"""Root mean square above which a chunk without text is suspicious (-40 dBFS)."""
SILENT = 1e-4
"""Root mean square below which the model does not get a chunk, because it would invent words for it (-80 dBFS)."""
SPARSE_SECONDS, SPARSE_CHARACTERS_PER_SECOND = 10.0, 0.5
"""An audible chunk that is this long or longer and has fewer characters a second has probably lost words."""
_TOKENS_PER_STEP = 8

LANGUAGES = (
    "Chinese", "English", "Cantonese", "Arabic", "German", "French", "Spanish", "Portuguese", "Indonesian", "Italian",
    "Korean", "Russian", "Thai", "Vietnamese", "Japanese", "Turkish", "Hindi", "Malay", "Dutch", "Swedish", "Danish",
    "Finnish", "Polish", "Czech", "Filipino", "Persian", "Greek", "Romanian", "Hungarian", "Macedonian",
)  # fmt: skip
"""The model's own names, for a model that lists no `support_languages`."""
_MARKS = re.compile(r"<\|[^|<>]*\|>|<asr_text>")
_HAN_GAP = re.compile(r"(?<=[\u3400-\u9fff，。？！]) (?=[\u3400-\u9fff])")


@dataclass(frozen=True)
class _Chunk:
    span: Span
    prompted: bool = True
    retry: bool = False
    """This is the second try: its text is kept in any case, and marked if it is still doubtful."""


def start_transcription(loaded: Loaded, request: TranscriptionRequest) -> Job[Transcribed]:
    """Raises `InvalidRequest` for audio that is not float32, for a language that the model does not know, and for a prompt and
    hotwords that leave no room for the audio."""
    if len(request.audio) % 4 or not request.audio:
        raise InvalidRequest("the audio is empty or no float32", param="file")
    limit = min(MAX_PROMPT_TOKENS, (loaded.context or MAX_PROMPT_TOKENS) // 2)
    tokens = len(loaded.tokenizer.encode(system_prompt(request) or ""))
    if tokens > limit:
        raise ContextTooLong(f"prompt and hotwords have {tokens} tokens; this model takes {limit}", param="prompt")
    return _TranscriptionJob(loaded, request, _language_name(loaded, request.language))


def system_prompt(request: TranscriptionRequest) -> str | None:
    """Context for the model: the caller's prompt, then the hotwords, as the model's authors join them."""
    return "\n".join(_context(request)) or None


def _context(request: TranscriptionRequest) -> list[str]:
    # The model's own marks would end the context, or announce audio where there is none.
    hotwords = (_MARKS.sub(" ", word).strip() for word in request.hotwords)
    lines = (_MARKS.sub(" ", request.prompt or "").strip(), ", ".join(word for word in hotwords if word))
    return [line for line in lines if line]


def token_budget(seconds: float) -> int:
    return max(MIN_BUDGET_TOKENS, round(seconds * TOKENS_PER_SECOND))


def doubt(text: str, tokens: int, span: Span, loudness: float, context: Sequence[str]) -> str | None:
    """Why the text of a chunk cannot be trusted; None if it can. `context` is the prompt and the list of hotwords."""
    if tokens >= token_budget(span.duration):
        return "the token budget was used up: the text may be cut short or loop"
    if not text and loudness > AUDIBLE:
        return "no text for audible sound"
    if any(len(text) >= 4 and fuzz.ratio(text, echo) >= 90 for echo in (*context, "\n".join(context))):
        return "the text repeats the prompt"
    sparse = span.duration >= SPARSE_SECONDS and len(text) < span.duration * SPARSE_CHARACTERS_PER_SECOND
    if sparse and loudness > AUDIBLE:
        return "little text for that much sound"
    if _loops(text):
        return "the text repeats itself"
    return None


def _loops(text: str) -> bool:
    """Whether the end of the text is one piece of up to 20 characters, four times in a row."""
    return any(len(text) >= 4 * n and text[-n:] * 4 == text[-4 * n :] for n in range(2, 21))


def _language_name(loaded: Loaded, code: str | None) -> str | None:
    """The model's own name of a language."""
    if code is None:
        return None
    names = {heard(name): name for name in loaded.config.get("support_languages") or LANGUAGES}
    if code not in names:
        raise InvalidRequest(f"this model does not know the language {code!r}", param="language")
    return names[code]


class _TranscriptionJob:
    def __init__(self, loaded: Loaded, request: TranscriptionRequest, language: str | None) -> None:
        self.id, self.priority, self.tenant = request.id, request.priority, request.tenant
        self._model, self._request, self._language = loaded.model, request, language
        self._audio = np.frombuffer(request.audio, dtype="<f4")
        whole = Span(0.0, len(self._audio) / SAMPLE_RATE)
        self._chunks = [_Chunk(span) for span in cut(self._audio, whole, max_seconds=CHUNK_SECONDS)]
        self._running: Iterator[tuple[Any, Any]] | None = None
        self._tokens: list[int] = []
        self._segments: list[Segment] = []
        self._generated = 0

    def step(self) -> Transcribed | None:
        chunk = self._chunks[0]
        if self._running is None:
            if self._loudness(chunk.span) < SILENT:
                self._chunks.pop(0)
                self._segments.append(Segment(chunk.span.start, chunk.span.end, ""))
                return None if self._chunks else self._result()
            self._running, self._tokens = self._start(chunk), []
        for _ in range(_TOKENS_PER_STEP):
            drawn = next(self._running, None)
            if drawn is None:
                self._running = None
                self._finish(self._chunks.pop(0))
                break
            self._tokens.append(int(drawn[0]))
        return None if self._chunks else self._result()

    def _clip(self, span: Span) -> np.ndarray[Any, np.dtype[np.float32]]:
        return self._audio[round(span.start * SAMPLE_RATE) : round(span.end * SAMPLE_RATE)]

    def _loudness(self, span: Span) -> float:
        """Root mean square; 1 is full scale."""
        return float(np.sqrt(np.mean(np.square(self._clip(span)))))

    def _start(self, chunk: _Chunk) -> Iterator[tuple[Any, Any]]:
        from mlx_audio.lm.sample_utils import make_sampler

        clip = self._clip(chunk.span)
        # A clip shorter than one frame makes the library raise. Silence after it changes no text.
        clip = np.pad(clip, (0, max(0, MIN_CLIP_SAMPLES - len(clip))))
        tokens: Iterator[tuple[Any, Any]] = self._model.stream_generate(
            clip,
            max_tokens=token_budget(chunk.span.duration),
            sampler=make_sampler(self._request.temperature),
            language=self._language,
            system_prompt=system_prompt(self._request) if chunk.prompted else None,
        )
        return tokens

    def _finish(self, chunk: _Chunk) -> None:
        """Keep the chunk's text. If it is doubtful, put the chunk back once, in a form that may do better."""
        self._generated += len(self._tokens)
        raw = self._model._tokenizer.decode(self._tokens, skip_special_tokens=False)
        language, text = self._language, raw
        if self._language is None:
            name, text = self._model.extract_language(raw)
            language = name if "<asr_text>" in raw else None
        text = _MARKS.sub("", text).strip()
        context = _context(self._request) if chunk.prompted else []
        reason = doubt(text, len(self._tokens), chunk.span, self._loudness(chunk.span), context)
        if reason and not chunk.retry and (second := self._second_try(chunk, reason)):
            self._chunks[:0] = second
            return
        self._segments.append(
            Segment(
                chunk.span.start,
                chunk.span.end,
                text,
                language=heard(language),
                low_confidence=reason,
            )
        )

    def _second_try(self, chunk: _Chunk, reason: str) -> list[_Chunk]:
        """The chunk without the prompt if it repeated the prompt, otherwise its halves. Nothing if it cannot be halved."""
        if "prompt" in reason:
            return [_Chunk(chunk.span, prompted=False, retry=True)]
        halves = cut(self._audio, chunk.span, max_seconds=max(MIN_HALF_SECONDS, chunk.span.duration * 0.75))
        return [_Chunk(span, retry=True) for span in halves] if len(halves) > 1 else []

    def _result(self) -> Transcribed:
        text = _HAN_GAP.sub("", " ".join(segment.text for segment in self._segments if segment.text))
        languages = [segment.language for segment in self._segments if segment.language]
        transcript = Transcript(
            text=text,
            duration=len(self._audio) / SAMPLE_RATE,
            language=max(set(languages), key=languages.count) if languages else None,
            segments=tuple(self._segments),
            usage=Usage(0, self._generated),
        )
        return Transcribed(self.id, transcript)
