"""Cutting audio: nothing lost, nothing twice, nothing too long, and cuts in the quiet."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech.splitter import SAMPLE_RATE, Span, cut, split
from tests import sounds

PAD = 0.15
_RNG = np.random.default_rng(0)
NOISE = (_RNG.standard_normal(200 * SAMPLE_RATE) * np.repeat(_RNG.random(2000), 1600) * 0.1).astype(np.float32)
"""200 s whose loudness changes every 0.1 s."""


@st.composite
def spans_in_audio(draw: st.DrawFn) -> tuple[sounds.Samples, list[Span]]:
    """Ordered spans (gaps may be zero) in noise of changing loudness."""
    lengths = draw(st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.05, 45.0)), max_size=4))
    at, spans = 0.0, []
    for gap, duration in lengths:
        spans.append(Span(at + gap, at + gap + duration))
        at += gap + duration
    return NOISE[: int((at + draw(st.floats(0.0, 2.0))) * SAMPLE_RATE)], spans


@given(spans_in_audio(), st.floats(1.0, 30.0), st.floats(0.0, 1.0))
def test_segments_cover_every_span_in_order_without_overlap(
    made: tuple[sounds.Samples, list[Span]], max_seconds: float, gap_seconds: float
) -> None:
    samples, spans = made
    segments = split(samples, spans, max_seconds=max_seconds, merge_gap_seconds=gap_seconds, pad_seconds=PAD)
    for segment in segments:
        assert 0.0 <= segment.start < segment.end <= len(samples) / SAMPLE_RATE + 1e-3
        assert segment.duration <= max_seconds + 2 * PAD + 1e-6
    for before, after in itertools.pairwise(segments):
        assert before.end <= after.start + 1e-9
    for span in spans:
        inside = sum(max(0.0, min(span.end, s.end) - max(span.start, s.start)) for s in segments)
        assert inside == pytest.approx(span.duration, abs=1e-6)


@given(spans_in_audio())
def test_segments_add_nothing_but_gaps_and_padding(made: tuple[sounds.Samples, list[Span]]) -> None:
    samples, spans = made
    segments = split(samples, spans, merge_gap_seconds=0.6, pad_seconds=PAD)
    added = sum(s.duration for s in segments) - sum(s.duration for s in spans)
    assert added <= max(0, len(spans) - 1) * max(0.6, 2 * PAD) + 2 * PAD + 1e-6


def test_near_spans_are_merged_and_far_ones_are_not() -> None:
    samples = np.zeros(20 * SAMPLE_RATE, np.float32)
    near = split(samples, [Span(1.0, 2.0), Span(2.5, 3.0), Span(4.0, 5.0)], pad_seconds=0.0)
    assert near == [Span(1.0, 3.0), Span(4.0, 5.0)]


def test_merging_stops_at_the_longest_length() -> None:
    samples = np.zeros(40 * SAMPLE_RATE, np.float32)
    spans = [Span(i * 5.0, i * 5.0 + 4.8) for i in range(8)]
    segments = split(samples, spans, max_seconds=15.0, pad_seconds=0.0)
    assert [round(s.duration, 1) for s in segments] == [14.8, 14.8, 9.8]


def test_a_long_span_is_cut_in_its_pause() -> None:
    samples = sounds.tone(50.0)
    samples[int(24.0 * SAMPLE_RATE) : int(24.2 * SAMPLE_RATE)] = 0.0
    first, second = cut(samples, Span(0.0, 50.0), max_seconds=28.0)
    assert 24.0 < first.end < 24.2
    assert second == Span(first.end, 50.0)


def test_no_sliver_is_left_at_the_end() -> None:
    pieces = cut(sounds.tone(29.0), Span(0.0, 29.0), max_seconds=28.0)
    assert min(piece.duration for piece in pieces) > 5.0


def test_padding_is_clamped_to_neighbours_and_to_the_audio() -> None:
    samples = np.zeros(5 * SAMPLE_RATE, np.float32)
    segments = split(samples, [Span(0.05, 1.0), Span(1.1, 4.95)], merge_gap_seconds=0.0, pad_seconds=0.2)
    assert [time for s in segments for time in (s.start, s.end)] == pytest.approx([0.0, 1.05, 1.05, 5.0])


def test_int16_is_cut_where_float_is() -> None:
    rng = np.random.default_rng(1)
    samples = np.round(rng.standard_normal(60 * SAMPLE_RATE) * 3000).astype(np.int16)
    spans = [Span(0.0, 60.0)]
    assert split(samples, spans) == split(samples.astype(np.float32) / 32768, spans)


def test_no_spans_give_no_segments() -> None:
    assert split(np.zeros(1000, np.float32), []) == []
