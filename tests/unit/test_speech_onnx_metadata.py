"""Metadata of ONNX files, read without a library that ends the process."""

from __future__ import annotations

from pathlib import Path

import pytest

import models
from speech import onnx_metadata

VOICES = models.EMBEDDED / "duet-tiny-speaker" / "spk.onnx"


def test_metadata_of_a_model_is_read() -> None:
    found = onnx_metadata.read(VOICES)
    assert (found["framework"], found["output_dim"], found["sample_rate"]) == ("wespeaker", "64", "16000")


def test_a_model_without_metadata_has_none() -> None:
    assert onnx_metadata.read(models.EMBEDDED / "silero-vad" / "silero_vad_16k_op15.onnx") == {}


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match=r"spk.onnx is no horn: its metadata lacks brass, reed"):
        onnx_metadata.require(VOICES, frozenset({"reed", "brass", "framework"}), kind="horn")


@pytest.mark.parametrize("data", [b"", b"not a model", bytes(range(200)), b"\x80" * 50, b"\x72\x7f\x0a"])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(data)
    with pytest.raises(onnx_metadata.NotOnnx):
        onnx_metadata.read(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_cut_model_is_refused(tmp_path: Path, share: float) -> None:
    data = VOICES.read_bytes()
    path = tmp_path / "a.onnx"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(onnx_metadata.NotOnnx):
        onnx_metadata.read(path)
