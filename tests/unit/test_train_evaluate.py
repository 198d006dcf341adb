"""The page of the embedded models: it says what was measured, on which weights, and what that does not show."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import numpy as np
import pytest

import models
from benchmarks.accuracy import cer, manifest, report
from duet.testing.stack import Stack
from training.evaluate import __main__ as command
from training.evaluate import document, embedding, measures, page
from training.evaluate.document import Document, Measured
from training.evaluate.measures import Measure, Result
from training.evaluate.session import Inputs, Session, Unmeasured, session
from training.vision import evaluate, rendering, texts

FIGURES = models.EMBEDDED / "figures.json"
FOLDERS = sorted(path.name for path in models.EMBEDDED.iterdir() if path.is_dir())


def options(folder: Path, **changed: object) -> argparse.Namespace:
    given = {"json": folder / "figures.json", "work": folder / "work", "eval": None, "bank": folder / "bank"}
    return argparse.Namespace(**(given | changed))


def test_the_page_is_what_the_figures_and_the_words_make() -> None:
    written = (models.EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert written == page.render(document.read(FIGURES), page.read_prose())


def test_the_figures_are_of_the_weights_that_lie_there() -> None:
    """After a model was replaced: `make evaluate`."""
    found = document.read(FIGURES)
    assert found.models == document.models_in(models.EMBEDDED)
    assert sorted(found.models) == FOLDERS
    assert found.measured
    assert [name for name in found.measured if not found.current(name)] == []


def test_every_model_has_a_row_and_every_row_says_what_it_does_not_show() -> None:
    lines = (models.EMBEDDED / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [
        [cell.strip() for cell in line.split(" | ")]
        for line in lines
        if line.startswith("| `duet-tiny-") or "vad` |" in line
    ]
    overview = {row[0].strip("| `"): row for row in rows if len(row) == 5}
    assert sorted(overview) == FOLDERS
    assert all(len(row[-1].strip("| ")) > 20 for row in overview.values())


def test_every_measure_has_words_and_a_form() -> None:
    prose = page.read_prose()
    assert {measure.name for measure in prose.measures} == set(measures.MEASURES) == set(page._SHOWN)
    known = {model.name for model in prose.models}
    assert set(FOLDERS) <= known
    for measure in prose.measures:
        assert measure.model in known
        assert measure.model in measures.MEASURES[measure.name].models
        assert measure.not_shown.strip()


def test_a_word_for_every_measured_figure_stands_on_the_page() -> None:
    found = document.read(FIGURES)
    written = (models.EMBEDDED / "README.md").read_text(encoding="utf-8")
    for name, one in found.measured.items():
        assert page.headline(name, one.figures) in written
        assert one.command in written
    assert not re.search(r"\bnan\b|\bNone\b|\{", written)


def test_figures_of_other_weights_are_not_shown() -> None:
    found = document.read(FIGURES)
    name = "embedding/paraphrases"
    told = page.headline(name, found.measured[name].figures)
    assert told in page.render(found, page.read_prose())
    found.models["duet-tiny-embed"].digest = "0" * 64
    changed = page.render(found, page.read_prose())
    assert told not in changed
    assert "*Not measured on these weights.*" in changed


def test_a_model_that_nobody_wrote_about_is_refused() -> None:
    found = document.read(FIGURES)
    found.models["duet-tiny-new"] = found.models["silero-vad"]
    with pytest.raises(ValueError, match="says nothing about duet-tiny-new"):
        page.render(found, page.read_prose())


def test_a_changed_file_of_a_model_changes_its_digest(tmp_path: Path) -> None:
    (tmp_path / "one" / "deep").mkdir(parents=True)
    (tmp_path / "one" / "model.onnx").write_bytes(b"weights")
    (tmp_path / "one" / "deep" / "rules.toml").write_bytes(b"a = 1")
    (tmp_path / "card.toml").write_bytes(b"")
    before = document.models_in(tmp_path)
    assert list(before) == ["one"]
    assert before["one"].bytes == 12
    assert list(before["one"].weights) == ["model.onnx"]
    (tmp_path / "one" / "deep" / "rules.toml").write_bytes(b"a = 2")
    after = document.models_in(tmp_path)
    assert after["one"].digest != before["one"].digest
    assert after["one"].weights == before["one"].weights


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    measured = {
        "b/x": Measured({"m": "1"}, {}, "b", {"share": 1 / 3, "bounds": (0.1234561, 2)}),
        "a/y": Measured({}, {}, "a", {}),
    }
    path = tmp_path / "new" / "figures.json"
    document.write(path, Document({}, measured))
    found = document.read(path)
    assert list(found.measured) == ["a/y", "b/x"]
    assert found.measured["b/x"].figures == {"share": 0.333333, "bounds": [0.123456, 2]}
    assert list(path.parent.iterdir()) == [path]


def test_shares_of_trials_have_wilson_s_interval() -> None:
    found = document.counted(95, 100)
    assert found["interval"] == pytest.approx([0.8883, 0.9785], abs=1e-4)
    assert document.counted(0, 10)["interval"] == pytest.approx([0.0, 0.2775], abs=1e-4)
    assert document.counted(10, 10)["interval"] == pytest.approx([0.7225, 1.0], abs=1e-4)


def test_queries_of_one_meaning_are_drawn_together() -> None:
    """Half of the meanings always found: twelve queries each do not make the interval narrower than fifty meanings do."""
    one = np.array([0, 9] * 25)
    found = embedding._shares([one] * 12)
    assert (found["queries"], found["top_1"], found["top_5"]) == (600, 0.5, 0.5)
    low, high = found["interval"]
    assert 0.34 < low < 0.40
    assert 0.60 < high < 0.66


def test_figures_of_the_bench_become_rows(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    rows = [
        {"audio": "a.wav", "text": "检查幂等。", "terms": ["幂等"], "id": "1"},
        {"audio": "a.wav", "text": "明天再说。", "id": "2"},
    ]
    path = tmp_path / "m.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    said, heard, reviewed = manifest.read([path]), ("检查密等。", "明天在说。"), ("检查幂等。", "明天在说。")
    runs = [
        cer.Run(arm, glossary, cer.grouped(said, heard, texts, glossary), texts)
        for arm, glossary, texts in (
            *(
                ("none", "true", heard),
                ("rule", "true", heard),
                ("lm", "true", reviewed),
                ("lm+rule", "true", reviewed),
            ),
            *(("rule", "absent", heard), ("lm", "absent", heard), ("lm+rule", "absent", heard)),
        )
    ]
    arms = document.cer_arms(report.cer_result(said, runs)["arms"])
    told = {name: {"unreadable": 1, "arms": arms} for name in ("sentences", "meetings")}
    assert (
        page.headline("review/frozen", told) == "1 sentences with unseen terms: CER 25.0% → 0.0% (by rule alone 25.0%)"
    )
    table, unreadable = page._review_frozen(told)
    assert "| sentences, with terms (1) | lm+rule | 0.0% | -25.00 (-100%), -25.0 … -25.0 | 1 / 0 | +0.00 | 0 |" in table
    assert unreadable.endswith("2.")


def test_what_lacks_its_inputs_or_fails_leaves_the_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(_: Session) -> Result:
        raise Unmeasured("needs a thing")

    def broken(_: Session) -> Result:
        raise RuntimeError("broken")

    def good(_: Session) -> Result:
        return Result({"candidates": 2, "all": {"queries": 4, "top_1": 0.5}}, {"data": "1"})

    one, other = "embedding/paraphrases", "recogniser/spoken"
    monkeypatch.setattr(
        measures,
        "MEASURES",
        {
            "recogniser/frozen": Measure(("duet-tiny-asr",), "a", missing),
            other: Measure(("duet-tiny-asr",), "b", broken),
            "vision/lines": Measure(("duet-tiny-none",), "c", good),
            one: Measure(("duet-tiny-embed",), "d", good),
        },
    )
    given = options(tmp_path)
    digests = {name: model.digest for name, model in document.models_in(models.EMBEDDED).items()}
    old = {
        "recogniser/frozen": Measured({"duet-tiny-asr": digests["duet-tiny-asr"]}, {}, "old", {}),
        "speaker/frozen": Measured({"duet-tiny-speaker": "another"}, {}, "old", {}),
    }
    document.write(given.json, Document({}, old))
    assert not command.measure(given, {"recogniser/frozen", "recogniser/spoken", "embedding", "vision"})
    found = document.read(given.json)
    assert sorted(found.measured) == [one, "recogniser/frozen"]
    assert found.measured[one].digests == {"duet-tiny-embed": digests["duet-tiny-embed"]}
    printed = capsys.readouterr().out
    assert "not measured: recogniser/frozen: needs a thing; the figures of these weights are kept" in printed
    assert "not measured: recogniser/spoken: failed: RuntimeError\n" in printed
    assert "not measured: vision/lines: there is no duet-tiny-none\n" in printed


def test_an_unknown_group_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--only", "vision,colour", "--json", str(tmp_path / "f.json")])
    with pytest.raises(SystemExit):
        command.main()
    assert "--only: unknown colour" in capsys.readouterr().err
    assert not (tmp_path / "f.json").exists()


def test_rendering_measures_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate", "--render", "--readme", str(tmp_path / "page.md")])
    monkeypatch.setattr(command, "measure", None)
    assert command.main() == 0
    assert (tmp_path / "page.md").read_bytes() == (models.EMBEDDED / "README.md").read_bytes()


def test_the_frozen_set_must_be_named_and_complete(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="--eval"):
        Inputs(tmp_path, None, tmp_path).sentences()
    with pytest.raises(Unmeasured, match=r"no sentences\.jsonl"):
        Inputs(tmp_path, tmp_path, tmp_path).sentences()
    with pytest.raises(Unmeasured, match="no meetings"):
        Inputs(tmp_path, tmp_path, tmp_path).meetings()


def test_sentences_are_measured_with_the_absent_terms_of_the_meetings(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    (tmp_path / "s.jsonl").write_text('{"audio": "a.wav", "text": "幂等", "terms": ["幂等"]}\n', encoding="utf-8")
    meeting = {"audio": "a.wav", "turns": [], "glossary": ["苹果"], "glossary_absent": ["蒙古包", "orchestra"]}
    (tmp_path / "m.json").write_text(json.dumps(meeting, ensure_ascii=False), encoding="utf-8")
    absent = measures._absent([tmp_path / "m.json"], tmp_path / "work" / "absent.json")
    found = manifest.read([tmp_path / "s.jsonl", absent])
    assert [(utterance.text, utterance.glossary) for utterance in found.utterances] == [("幂等", ("幂等",))]
    assert found.absent == ("蒙古包", "orchestra")


def test_rendered_lines_are_counted_by_fonts_and_by_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = [
        evaluate.Reading(fonts, kind, "text", read)
        for fonts, reads in zip(evaluate.FONTS, (("text", "tex"), ("text", "text")), strict=True)
        for kind in evaluate.KINDS
        for read in reads
    ]
    monkeypatch.setattr(evaluate, "evaluate", lambda client, count, seed: readings)
    monkeypatch.setattr(rendering, "require_fonts", lambda: None)
    monkeypatch.setattr(texts, "WORDS", tmp_path / "words")
    (tmp_path / "words").write_text("text\n", encoding="utf-8")
    stack = Stack(tmp_path, "http://127.0.0.1:1", "http://127.0.0.1:1", "key", 0, tmp_path / "log")
    with session(Inputs(tmp_path, None, tmp_path)) as opened:
        opened._stack = stack
        found = measures.vision_lines(opened)
    assert page.headline("vision/lines", found.figures) == "75.0% of 12 rendered lines read exactly"
    training, other = evaluate.FONTS
    rows = {
        (fonts, kind): (one["right"], one["of"])
        for fonts, kinds in found.figures["exact"].items()
        for kind, one in kinds.items()
    }
    assert (rows["all fonts", "word"], rows[training, "all"], rows[other, "all"]) == ((3, 4), (3, 6), (6, 6))
    assert rows[training, "number"] == (1, 2)
