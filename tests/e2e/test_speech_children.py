"""The recogniser's and the diarizer's processes with the embedded models: answers, death, and models that are none."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

import models
from duet.errors import Unavailable, WorkerLost
from duet.wire import Segment, SpeakerTurn
from speech.decoding.trusted import samples as decode
from speech.decoding.trusted import write_pcm
from speech.diarizers.sherpa import SherpaDiarizer
from speech.metrics import der
from speech.recognisers.sensevoice import SenseVoice
from speech.splitter import SAMPLE_RATE
from tests import sounds

pytestmark = pytest.mark.e2e
ASR, SPEAKER, DEMO = models.EMBEDDED / "duet-tiny-asr", models.EMBEDDED / "duet-tiny-speaker", models.CARDS / "demo"


@pytest.fixture
async def recogniser() -> AsyncIterator[SenseVoice]:
    recogniser = SenseVoice(ASR, threads=1)
    yield recogniser
    await recogniser.close()


def clip(name: str) -> sounds.Samples:
    return decode(DEMO / f"clip_{name}.flac", max_seconds=30)


@pytest.mark.parametrize("language", ["zh", "en"])
async def test_a_clip_is_recognised_with_its_tags_and_word_times(recogniser: SenseVoice, language: str) -> None:
    samples = clip(language)
    (segment,) = await recogniser.transcribe([samples])
    assert segment.language == language
    assert (segment.emotion, segment.event) == ("neutral", "speech")
    assert (segment.start, segment.end) == (0.0, len(samples) / SAMPLE_RATE)
    assert "".join(word.text for word in segment.words) == segment.text.replace(" ", "")
    starts = [word.start for word in segment.words]
    assert starts == sorted(starts)
    assert starts[-1] < segment.end


async def test_a_batch_equals_its_clips_alone(recogniser: SenseVoice) -> None:
    clips = [clip("zh"), clip("en"), clip("zh")[:30_000], np.zeros(399, np.float32), clip("en")[:20_000]] * 2
    batch = await recogniser.transcribe(clips)
    alone = [(await recogniser.transcribe([one]))[0] for one in clips]
    assert batch == alone
    assert batch[3].text == ""
    assert await recogniser.transcribe([np.zeros(10, np.float32)]) == [Segment(0.0, 10 / SAMPLE_RATE, "")]


async def test_concurrent_callers_get_their_own_answers(recogniser: SenseVoice) -> None:
    expected = {name: (await recogniser.transcribe([clip(name)]))[0].text for name in ("zh", "en")}
    names = ["zh", "en"] * 6
    answers = await asyncio.gather(*(recogniser.transcribe([clip(name)]) for name in names))
    assert [answer[0].text for answer in answers] == [expected[name] for name in names]


async def test_digits_and_punctuation_can_be_left_out(recogniser: SenseVoice) -> None:
    (plain,) = await recogniser.transcribe([clip("zh")], itn=False)
    (written,) = await recogniser.transcribe([clip("zh")], itn=True)
    assert written.text == plain.text + "。"


async def test_no_clips_give_no_segments(recogniser: SenseVoice) -> None:
    assert await recogniser.transcribe([]) == []


async def test_a_clip_that_was_not_cut_is_refused(recogniser: SenseVoice) -> None:
    with pytest.raises(ValueError, match=r"30\.1 s"):
        await recogniser.transcribe([np.zeros(int(30.1 * SAMPLE_RATE), np.float32)])


async def test_a_killed_recogniser_fails_its_call_and_the_next_works(recogniser: SenseVoice) -> None:
    (before,) = await recogniser.transcribe([clip("zh")])
    assert recogniser.pid is not None
    long = np.tile(clip("zh"), 6)[: 29 * SAMPLE_RATE]
    call = asyncio.create_task(recogniser.transcribe([long] * 8))
    await asyncio.sleep(0)
    os.kill(recogniser.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await call
    assert (await recogniser.transcribe([clip("zh")]))[0] == before


def _without(key: bytes) -> Callable[[bytes], bytes]:
    """A model whose metadata lacks one key: renamed in place, so that the file stays whole."""

    def change(data: bytes) -> bytes:
        assert key in data
        return data.replace(key, b"x" + key[1:])

    return change


BROKEN_ASR: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no vocabulary size": (_without(b"vocab_size"), "lacks vocab_size"),
    "no means": (_without(b"neg_mean"), "lacks neg_mean"),
    "no languages": (_without(b"lang_ko"), "lacks lang_ko"),
    "text": (lambda _: b"not a model at all\n" * 10, "no ONNX model"),
    "cut": (lambda data: data[: len(data) // 2], "cut short"),
    "empty": (lambda _: b"", "is empty"),
}


@pytest.mark.parametrize("name", BROKEN_ASR)
async def test_a_broken_recogniser_model_is_an_error_that_names_the_cause(tmp_path: Path, name: str) -> None:
    change, said = BROKEN_ASR[name]
    shutil.copy(ASR / "tokens.txt", tmp_path)
    (tmp_path / "model.int8.onnx").write_bytes(change((ASR / "model.int8.onnx").read_bytes()))
    recogniser = SenseVoice(tmp_path)
    try:
        for _ in range(2):  # the process stays: no restart for a file that is no better
            with pytest.raises(Unavailable, match=said) as caught:
                await recogniser.transcribe([sounds.tone(1.0)])
            assert not isinstance(caught.value, WorkerLost)
    finally:
        await recogniser.close()


async def test_tokens_of_another_model_are_an_error(tmp_path: Path) -> None:
    shutil.copy(ASR / "model.int8.onnx", tmp_path)
    (tmp_path / "tokens.txt").write_text("a 0\nb 1\n")
    recogniser = SenseVoice(tmp_path)
    try:
        with pytest.raises(Unavailable, match=r"tokens\.txt does not belong"):
            await recogniser.transcribe([clip("zh")])
    finally:
        await recogniser.close()


async def test_an_empty_model_folder_is_an_error(tmp_path: Path) -> None:
    recogniser = SenseVoice(tmp_path)
    try:
        with pytest.raises(Unavailable, match=r"model\.int8\.onnx or model\.onnx, and tokens\.txt"):
            await recogniser.transcribe([sounds.tone(1.0)])
    finally:
        await recogniser.close()


# The diarizer ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def meeting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("meeting") / "meeting.pcm"
    write_pcm(DEMO / "meeting.flac", target, max_seconds=600)
    return target


@pytest.mark.parametrize("speakers", [None, 2])
async def test_turns_are_labelled_by_appearance_and_inside_the_audio(meeting: Path, speakers: int | None) -> None:
    diarizer, seen = SherpaDiarizer(SPEAKER), list[float]()
    try:
        turns = await diarizer.diarize(meeting, speakers=speakers, on_progress=seen.append)
    finally:
        await diarizer.close()
    labels = list(dict.fromkeys(turn.speaker for turn in turns))
    assert labels == [f"S{i + 1}" for i in range(len(labels))]
    assert len(labels) >= 2 if speakers is None else len(labels) == speakers
    assert [turn.start for turn in turns] == sorted(turn.start for turn in turns)
    assert all(0 <= turn.start < turn.end <= meeting.stat().st_size / 2 / SAMPLE_RATE + 0.1 for turn in turns)
    assert seen == [1.0]


async def test_the_people_of_the_demo_s_meeting_are_counted_and_told_apart(meeting: Path) -> None:
    truth = json.loads((DEMO / "meeting.json").read_text(encoding="utf-8"))["turns"]
    diarizer = SherpaDiarizer(SPEAKER)
    try:
        turns = await diarizer.diarize(meeting)
    finally:
        await diarizer.close()
    spoken = [SpeakerTurn(turn["start"], turn["end"], turn["speaker"]) for turn in truth]
    heard = [SpeakerTurn(turn.start, turn.end, turn.speaker) for turn in turns]
    assert len({turn.speaker for turn in heard}) == len({turn.speaker for turn in spoken})
    assert der(spoken, heard).rate < 0.15


@pytest.mark.parametrize("seconds", [0.0, 0.2, 3.0])
async def test_silence_has_no_turns(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "silence.pcm"
    path.write_bytes(bytes(2 * int(seconds * SAMPLE_RATE)))
    diarizer = SherpaDiarizer(SPEAKER)
    try:
        assert await diarizer.diarize(path) == []
    finally:
        await diarizer.close()


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("seg.onnx", b"window_size"),
        ("seg.onnx", b"num_classes"),
        ("spk.onnx", b"output_dim"),
        ("spk.onnx", b"framework"),
    ],
)
async def test_a_broken_speaker_model_is_an_error_that_names_the_cause(
    tmp_path: Path, meeting: Path, model: str, key: bytes
) -> None:
    for name in ("seg.onnx", "spk.onnx"):
        shutil.copy(SPEAKER / name, tmp_path)
    (tmp_path / model).write_bytes(_without(key)((SPEAKER / model).read_bytes()))
    diarizer = SherpaDiarizer(tmp_path)
    try:
        with pytest.raises(Unavailable, match=f"{model} is no .*lacks {key.decode()}"):
            await diarizer.diarize(meeting)
    finally:
        await diarizer.close()
