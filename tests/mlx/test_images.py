"""Images as bytes: which are taken, which are refused and how, and what reaches the model."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest
from PIL import Image

from engine.fleet.protocol import Cancel
from engine.types import Accepted, Failed, Finished, GenerationRequest, Priority, SamplingParams, TextDelta
from engine.worker.families import text
from engine.worker.model import Loaded
from engine.worker.scheduler.order import AGEING_SECONDS
from tests.mlx.conftest import Driver, ask, picture


def encoded(size: tuple[int, int], mode: str = "RGB", form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def encodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by a prompt with every run of the vision encoder."""
    found: list[str] = []
    prepare = text.prepare_images

    def noted(loaded: Loaded, prompt: str, images: list[Image.Image]) -> object:
        found.append(prompt)
        return prepare(loaded, prompt, images)

    monkeypatch.setattr(text, "prepare_images", noted)
    return found


@pytest.mark.parametrize("kind", ["vision", "hybrid"])
def test_an_image_that_the_processor_refuses_fails_its_request_by_name(model: Callable[..., Loaded], kind: str) -> None:
    driver = Driver(model(kind))
    driver.post(ask("thin", "x", images=(encoded((1, 3000)),)))
    driver.post(ask("fine", "x", images=(encoded((1, 1)),)))
    driver.drain()
    (failed,) = driver.of("thin", Failed)
    assert (failed.code, failed.param) == ("invalid_value", "messages")
    assert "aspect ratio" in failed.message
    assert driver.of("fine", Finished)


def test_images_beyond_the_context_are_refused_before_they_are_encoded(
    model: Callable[..., Loaded], encodings: list[str]
) -> None:
    loaded = replace(model("vision"), context=64)
    driver = Driver(loaded)
    driver.run_all([ask("many", "x", images=(picture(1, (320, 256)),) * 8)])
    [failed] = driver.of("many", Failed)
    assert failed.code == "context_length_exceeded"
    assert not encodings


@pytest.mark.parametrize("kind", ["vision", "hybrid"])
def test_an_image_s_prefill_in_chunks_equals_it_whole(model: Callable[..., Loaded], kind: str) -> None:
    loaded = model(kind)
    request = ask("a", "which is larger", images=(picture(1, (160, 96)), picture(2, (64, 128))), tokens=30)
    whole = Driver(loaded, chunk_tokens=4096).run([request])
    assert [Driver(loaded, chunk_tokens=size).run([request]) for size in (3, 16)] == [whole, whole]


# Beside running streams -------------------------------------------------------------------------------------------------


def seen(name: str, *, tokens: int = 5, priority: Priority = "normal") -> GenerationRequest:
    return msgspec.structs.replace(ask(name, name, images=(picture(1),), tokens=tokens), priority=priority)


@pytest.fixture
def driver(model: Callable[..., Loaded], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """A worker in which a stream runs, with as many rows as asked for."""
    monkeypatch.setattr("engine.pictures.decoder.IDLE_SECONDS", 3600.0)  # a test moves the clock
    driver = Driver(model("vision"), max_rows=getattr(request, "param", 16))
    driver.run_all([seen("warm", tokens=1)])  # the child that decodes pictures has started
    driver.post(ask("stream", "a story", tokens=400))
    while not driver.of("stream", TextDelta):
        driver.tick()
    return driver


def test_a_stream_goes_on_between_the_images_of_a_burst(driver: Driver, encodings: list[str]) -> None:
    names = [f"image {i}" for i in range(6)]
    for name in names:
        driver.post(seen(name))
    said = len(driver.of("stream", TextDelta))
    while len(encodings) < len(names):
        before = len(encodings)
        driver.tick()
        assert len(encodings) - before <= 1
    assert len(driver.of("stream", TextDelta)) - said >= len(names) - 1, "a token between each two"
    driver.drain()
    assert all(driver.of(name, Accepted) and driver.of(name, Finished) for name in names)


@pytest.mark.parametrize("driver", [1], indirect=True)
def test_one_image_of_a_priority_is_encoded_before_it_has_a_row(driver: Driver, encodings: list[str]) -> None:
    normal, urgent = [f"normal {i}" for i in range(3)], [f"urgent {i}" for i in range(3)]
    for name in [*normal, *urgent]:
        driver.post(seen(name, priority="interactive" if name in urgent else "normal"))
    while not encodings:
        driver.tick()
    said = len(driver.of("stream", TextDelta))
    while len(driver.of("stream", TextDelta)) < said + 40:
        driver.tick()
    assert len(encodings) == 1, "an urgent one is encoded first, and then none of lower priority"
    assert driver.of("urgent 0", Accepted)
    assert driver.waiting() == 6
    driver.drain()
    over = [event.id for event in driver.recorder.sent if isinstance(event, Finished)]
    assert over == ["warm", "stream", *urgent, *normal]


@pytest.mark.parametrize("driver", [1], indirect=True)
def test_an_image_that_has_waited_too_long_is_encoded_however_many_are_more_urgent(
    driver: Driver, encodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shift, monotonic = 0.0, time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + shift)
    driver.post(seen("urgent", priority="interactive"))
    driver.post(seen("old", priority="batch"))
    while not encodings:
        driver.tick()
    for _ in range(10):
        driver.tick()
    assert len(encodings) == 1
    shift = AGEING_SECONDS["batch"]
    while not driver.of("old", Accepted):
        driver.tick()
    assert not driver.of("stream", Finished)


@pytest.mark.parametrize("driver", [1], indirect=True)
@pytest.mark.parametrize("end", ["cancelled", "late"])
def test_a_request_ends_while_its_image_waits_to_be_encoded(driver: Driver, encodings: list[str], end: str) -> None:
    gone = seen("gone")
    if end == "late":
        gone = msgspec.structs.replace(gone, deadline=time.monotonic() + 0.05)
    driver.post(seen("first"))
    driver.post(gone)
    driver.tick()
    if end == "cancelled":
        driver.post(Cancel("gone"))
    driver.drain()
    assert len(encodings) == 1
    assert driver.of("first", Finished)
    told = [event for event in driver.recorder.sent if event.id == "gone"]
    assert [event.code for event in told] == (["deadline_exceeded"] if end == "late" else [])


@pytest.mark.parametrize("driver", [1], indirect=True)
def test_what_needs_no_encoder_is_refused_at_once(driver: Driver) -> None:
    driver.post(seen("first"))
    driver.post(msgspec.structs.replace(seen("bad"), sampling=SamplingParams(logit_bias={99999: 1.0})))
    for _ in range(2):
        driver.tick()
    (failed,) = driver.of("bad", Failed)
    assert failed.param == "logit_bias"
