"""The figures and manifests of `duet bench`, against cases counted by hand."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.accuracy import backends, cer, report
from benchmarks.accuracy.figures import Scored, figures, term_counts
from benchmarks.accuracy.manifest import Manifest, ManifestError, Utterance, read, script
from speech.wav import as_wav
from tests.conftest import HomeSettings

WORDS = st.text(alphabet="我们测试数据库abc ", max_size=12)


def scored(reference: str, heard: str, text: str) -> Scored:
    return Scored(reference, heard, text)


def test_counts_of_two_utterances() -> None:
    rows = [scored("今天测试数据库", "今天侧试数据库", "今天测试数据库"), scored("a b c d", "a b c d", "a b x d e")]
    found = figures(rows, ["数据库", "测试"])
    assert (found.cer.substitutions, found.cer.insertions, found.cer.deletions, found.cer.units) == (1, 1, 0, 11)
    assert (found.better, found.worse, found.protected_changed) == (1, 1, 0)
    assert found.term_recall == 1.0
    assert found.term_precision == 1.0
    low, high = found.cer_interval
    assert 0.0 <= low <= found.cer.rate <= high <= 1.0


def test_a_changed_number_or_negation_is_counted() -> None:
    rows = [
        scored("三十个人不来", "三十个人不来", "四十个人不来"),
        scored("他不来", "他不来", "他来"),
        scored("他来", "她来", "他来"),
    ]
    assert figures(rows, []).protected_changed == 2


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("用clickhouse存clickhouse", "用click house存", (1, 2, 1)),
        ("没有术语", "用ClickHouse", (0, 0, 1)),
        ("幂等，幂等", "幂等幂等幂等", (2, 2, 3)),
        ("二次幂等于四", "clickhouses", (0, 1, 0)),
        ("Redis和CLICKHOUSE", "redis和clickhouse", (1, 1, 1)),
    ],
)
def test_terms_are_counted_as_whole_words_without_case_and_spaces(
    reference: str, text: str, expected: tuple[int, int, int]
) -> None:
    assert term_counts(reference, text, ["clickhouse", "幂等"]) == expected


@settings(max_examples=30)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=8))
def test_an_arm_that_changes_nothing_differs_in_nothing(pairs: list[tuple[str, str]]) -> None:
    found = figures([scored(reference, heard, heard) for reference, heard in pairs], [])
    assert found.difference_interval == (0.0, 0.0)
    assert (found.better, found.worse, found.protected_changed) == (0, 0, 0)


@settings(max_examples=30)
@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=6), st.integers(0, 5))
def test_figures_do_not_depend_on_the_arm_compared_with_and_hold_together(
    triples: list[tuple[str, str, str]], seed: int
) -> None:
    rows = [scored(*triple) for triple in triples]
    found, turned = (
        figures(rows, ["数据库", "abc"], seed=seed),
        figures([scored(row.reference, row.text, row.heard) for row in rows], ["数据库", "abc"], seed=seed),
    )
    assert (found.better, found.worse) == (turned.worse, turned.better)
    assert found.protected_changed == turned.protected_changed
    assert found.better + found.worse <= found.utterances == len(rows)
    low, high = found.difference_interval
    assert turned.difference_interval == pytest.approx((-high, -low)) or found.cer.units != turned.cer.units
    for share in (found.term_recall, found.term_precision):
        assert share is None or 0.0 <= share <= 1.0


@settings(max_examples=30)
@given(st.text(max_size=12))
def test_a_text_against_itself_has_no_errors(text: str) -> None:
    found = figures([scored(text, text, text)], [])
    assert found.cer.rate == found.mer.rate == 0.0
    assert found.cer_interval == (0.0, 0.0)


def test_the_interval_of_two_utterances_spans_from_the_better_to_the_worse() -> None:
    found = figures([scored("一二三四", "一二三四", "一二三四"), scored("一二三四", "一二三四", "一二三")], [])
    assert found.cer.rate == 0.125
    assert found.cer_interval == (0.0, 0.25)
    assert found.difference_interval == (0.0, 0.25)


def test_intervals_are_the_same_for_the_same_seed() -> None:
    rows = [scored("测试数据库", "测试数据裤"[: i + 1], "测试数据库"[: i + 1]) for i in range(5)]
    assert figures(rows, [], seed=3) == figures(rows, [], seed=3)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        figures([], [])


@pytest.mark.parametrize(("text", "expected"), [("数据库", "zh"), ("a cache", "en"), ("用redis", "mixed"), ("", "en")])
def test_the_language_of_a_text_is_told_by_its_characters(text: str, expected: str) -> None:
    assert script(text) == expected


def manifest(folder: Path, name: str, content: str) -> Path:
    (folder / "a.wav").write_bytes(b"")
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_meeting_s_turns_are_utterances_and_its_lists_are_kept(tmp_path: Path) -> None:
    meeting = {
        "audio": "a.wav", "glossary": ["幂等"], "glossary_absent": ["falcon"],
        "turns": [{"start": 0, "end": 1.5, "speaker": "A", "text": "接口要幂等"}, {"start": 2, "end": 3, "speaker": "B"}],
    }  # fmt: skip
    found = read([manifest(tmp_path, "m.json", json.dumps(meeting))])
    assert [(one.id, one.terms, one.start, one.end) for one in found.utterances] == [("m/000", ("幂等",), 0.0, 1.5)]
    assert [turn.speaker for turn in found.meetings[0].turns] == ["A", "B"]
    assert found.absent == ("falcon",)


def test_the_glossary_of_a_list_is_all_its_terms(tmp_path: Path) -> None:
    lines = [{"audio": "a.wav", "text": "一", "terms": ["幂等"]}, {"audio": "a.wav", "text": "two", "id": "x"}]
    found = read([manifest(tmp_path, "m.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")])
    assert [(one.id, one.language, one.glossary) for one in found.utterances] == [
        ("m/1", "zh", ("幂等",)),
        ("x", "en", ("幂等",)),
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.jsonl", '{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav"}', "line 2: .*text"),
        ("m.jsonl", '{"audio": "b.wav", "text": "x"}', "line 1: audio 'b.wav' is not there"),
        ("m.jsonl", "{broken", "line 1"),
        ("m.jsonl", '{"audio": "a.wav", "text": 3}', r"line 1: .*\$\.text"),
        ("m.jsonl", '{"audio": "a.wav", "text": "x", "start": 3, "end": 2}', "line 1 ends before it starts"),
        ("m.jsonl", '{"audio": "a.wav", "text": "x", "id": "1"}\n' * 2, "'1' is the id of two utterances"),
        ("m.json", "[]", "m.json"),
        ("m.json", '{"audio": "a.wav", "turns": [{"start": -1, "end": 1, "speaker": "A"}]}', r"turns.*start"),
        ("m.json", '{"audio": "a.wav", "turns": [{"start": 2, "end": 1, "speaker": "A"}]}', "ends before it starts"),
        (
            "m.json",
            '{"audio": "a.wav", "glossary_absent": ["a"], "turns": [{"start": 0, "end": 1, "speaker": "A", "text": "a b"}]}',
            "listed as absent and is said",
        ),
    ],
)  # fmt: skip
def test_a_wrong_manifest_names_its_line_and_field(tmp_path: Path, name: str, content: str, said: str) -> None:
    with pytest.raises(ManifestError, match=said):
        read([manifest(tmp_path, name, content)])


def test_text_that_is_not_utf_8_is_an_error_of_its_line(tmp_path: Path) -> None:
    path = manifest(tmp_path, "m.jsonl", "")
    path.write_bytes(b'{"audio": "a.wav", "text": "x"}\n{"audio": "a.wav", "text": "\xc4\xe3"}\n')
    with pytest.raises(ManifestError, match="line 2"):
        read([path])


def test_an_absent_term_inside_a_word_is_not_said(tmp_path: Path) -> None:
    turns = [{"start": 0, "end": 1, "speaker": "A", "text": "the shared cache"}]
    content = json.dumps({"audio": "a.wav", "glossary_absent": ["red"], "turns": turns})
    assert read([manifest(tmp_path, "m.json", content)]).absent == ("red",)


class Counting:
    """A backend at the border: how often it was asked is what is tested."""

    def __init__(self, identity: str = "counting", *, degraded: bool = False) -> None:
        self.asked = 0
        self._identity, self._degraded = identity, degraded

    async def identify(self) -> str:
        return self._identity

    async def transcribe(self, utterance: Utterance, samples: backends.Samples) -> backends.Heard:
        self.asked += 1
        return backends.Heard(f"{utterance.id} {len(samples)}", "somewhere", self._degraded)

    async def close(self) -> None:
        return


def test_what_was_transcribed_once_is_not_transcribed_again(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(as_wav(np.zeros(16_000, np.float32)))
    said = [Utterance("one", audio, "x", "en", (), ()), Utterance("two", audio, "x", "en", (), (), 0.25, 0.5)]
    cache, ears, seen = backends.Cache(tmp_path / "cache.jsonl"), Counting(), list[int]()
    first = asyncio.run(backends.transcripts(ears, said, cache, seen.append))
    with cache.path.open("a", encoding="utf-8") as file:
        file.write('{"key": "cut of')  # as an interrupted write leaves it
    again = asyncio.run(backends.transcripts(ears, said, cache, seen.append))
    assert first == again == [backends.Heard("one 16000", "somewhere"), backends.Heard("two 4000", "somewhere")]
    assert ears.asked == 2
    assert seen == [1, 2, 1, 2]
    other = Counting("another model")
    asyncio.run(backends.transcripts(other, said, cache, seen.append))
    assert other.asked == 2


def test_a_degraded_answer_is_asked_for_again(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(as_wav(np.zeros(1_600, np.float32)))
    said = [Utterance("one", audio, "x", "en", (), ())]
    cache, ears = backends.Cache(tmp_path / "cache.jsonl"), Counting(degraded=True)
    for _ in range(2):
        assert asyncio.run(backends.transcripts(ears, said, cache, lambda done: None))[0].degraded
    assert ears.asked == 2


def test_an_utterance_after_the_end_of_its_recording_is_an_error(tmp_path: Path) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(as_wav(np.zeros(1_600, np.float32)))
    said = [Utterance("late", audio, "x", "en", (), (), 0.5, 1.0)]
    with pytest.raises(backends.BackendError, match="late begins after the end"):
        asyncio.run(backends.transcripts(Counting(), said, None, lambda done: None))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"id": "one"}', "id and text"),
        ('{"id": "one", "text": "a"}\n{"id": "one", "text": "b"}', "an id is there twice"),
        ("[1]", "id and text"),
    ],
)
def test_hypotheses_of_another_form_are_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "h.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(backends.BackendError, match=said):
        backends.Ready(path)


def test_utterances_without_a_hypothesis_are_named(tmp_path: Path) -> None:
    audio, path = tmp_path / "a.wav", tmp_path / "h.jsonl"
    audio.write_bytes(as_wav(np.zeros(160, np.float32)))
    path.write_text('{"id": "one", "text": "a\u2028b"}\n', encoding="utf-8")
    said = [Utterance(name, audio, "x", "en", (), ()) for name in ("one", "two")]
    ready = backends.Ready(path)
    assert asyncio.run(backends.transcripts(ready, said[:1], None, lambda done: None))[0].text == "a\u2028b"
    with pytest.raises(backends.BackendError, match="no transcript of two"):
        asyncio.run(backends.transcripts(ready, said, None, lambda done: None))


def test_the_plot_and_the_document_hold_every_arm(tmp_path: Path, home_settings: HomeSettings) -> None:
    audio = tmp_path / "a.wav"
    audio.write_bytes(b"x")
    path = manifest(tmp_path, "m.jsonl", json.dumps({"audio": "a.wav", "text": "讨论知识蒸馏", "terms": ["知识蒸馏"]}))
    known = read([path])
    all_of_it = Manifest(known.files, known.utterances, known.meetings, ("falcon",))
    review = cer.Review(home_settings(), None)
    runs = asyncio.run(cer.run(review, all_of_it, ["讨论知识争流"], ["none", "rule", "lm"], lambda what, done: None))
    assert [(run.arm, run.glossary) for run in runs] == [("none", "true"), ("rule", "true"), ("rule", "absent")]
    assert runs[1].texts == ("讨论知识蒸馏",)
    assert runs[1].groups["all"].cer.rate == 0.0
    drawn = report.plot(runs)
    bars = ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}rect")
    assert len(list(bars)) == 3 * len(runs[0].groups)
    found = report.document(all_of_it, {"backend": "x"}, report.cer_result(all_of_it, runs))
    assert json.loads(json.dumps(found, ensure_ascii=False))["utterances"][0]["rule true"] == "讨论知识蒸馏"
    assert set(found["manifests"]) == {"m.jsonl"}
