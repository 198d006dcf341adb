"""Loading: damaged, incomplete, unknown and hostile folders are refused with cause and fix, and nothing of them runs."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import save_file

from duet.errors import InvalidRequest
from engine.types import EmbeddingRequest
from engine.worker.families.embedding import start_embedding
from engine.worker.runtime.loader import LoadError, load
from tests import checkpoints
from tests.mlx.test_embeddings import embed


@pytest.fixture
def folder(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the plain checkpoint to be damaged."""
    return Path(shutil.copytree(checkpoint("plain"), tmp_path / "broken"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_without_a_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"broken: config\.json is missing"):
        load(folder, "chat")


@pytest.mark.parametrize("text", ["", "no json", "[1]", "\xff"])
def test_a_config_that_is_no_object_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(LoadError, match=r"config\.json"):
        load(folder, "chat")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(LoadError, match=r"has no \*\.safetensors"):
        load(folder, "chat")


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1, -1000])
def test_weights_cut_short_are_refused_before_they_are_read(folder: Path, keep: int) -> None:
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:keep])
    with pytest.raises(LoadError, match="download"):
        load(folder, "chat")


@pytest.mark.parametrize(
    "data",
    [
        b"not safetensors at all, but long enough",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 12) + b'{"a": {"b": 1',
        struct.pack("<Q", 30) + b'{"a":{"data_offsets":[0,9999]}}',
    ],
)
def test_what_is_no_safetensors_is_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(LoadError, match="download"):
        load(folder, "chat")


def test_a_shard_that_the_index_lists_and_is_not_there_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match=r"model-00002-of-00002\.safetensors missing"):
        load(folder, "chat")


@pytest.mark.parametrize("weight_map", [{"a": "../model.safetensors"}, [], "x", None])
def test_an_index_that_leads_elsewhere_is_refused(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(LoadError, match=r"outside|index\.json lists no files"):
        load(folder, "chat")


def test_a_missing_tensor_is_refused_and_never_random(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)
    with pytest.raises(LoadError, match=r"broken \(qwen3\) cannot be loaded as chat"):
        load(folder, "chat")


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    edit(folder / "config.json", model_type="never_heard_of")
    with pytest.raises(LoadError, match="never_heard_of"):
        load(folder, "chat")


def test_code_in_a_folder_is_not_run(folder: Path, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')")
    edit(folder / "config.json", model_file="evil.py")
    with pytest.raises(LoadError, match="brings its own code"):
        load(folder, "chat")
    assert not proof.exists()


def test_a_speech_model_s_tokenizer_in_code_is_not_run_and_not_needed(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder, proof = Path(shutil.copytree(checkpoint("qwen3_asr"), tmp_path / "speech")), tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", None]}, tokenizer_class="Evil")
    assert load(folder, "asr").capabilities == ("asr",)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").unlink(missing_ok=True)
    with pytest.raises(LoadError, match=r"tokenizer_config\.json: .*auto_map"):
        load(folder, "asr")
    assert not proof.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"feature_size": 80}, {"feature_size": None}, {"feature_size": 0}, {"hop_length": 0}, {"n_fft": 0}, {"n_fft": -1},
        {"sampling_rate": 8000},
    ],
    ids=str,
)  # fmt: skip
def test_a_recogniser_that_can_take_no_sound_is_not_loaded(
    tmp_path: Path, checkpoint: Callable[[str], Path], change: dict[str, Any]
) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen3_asr"), tmp_path / "speech"))
    path = folder / "preprocessor_config.json"
    settings = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in settings.items() if value is not None}))
    with pytest.raises(LoadError, match=r"speech.*(preprocessor_config|cannot be loaded)"):
        load(folder, "asr")


def test_only_qwen3_asr_transcribes(folder: Path) -> None:
    edit(folder / "config.json", model_type="whisper")
    with pytest.raises(LoadError, match="Qwen3-ASR does"):
        load(folder, "asr")


def test_a_speech_model_with_a_missing_tensor_is_refused(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("qwen3_asr"), tmp_path / "speech"))
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"]["encoder_layers"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="qwen3_asr"):
        load(folder, "asr")


ENCODER = {
    "vocab_size": checkpoints.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1,
}  # fmt: skip


def write_encoder(folder: Path, kind: str) -> Path:
    """A tiny BERT ("bert") or XLM-RoBERTa ("xlm-roberta") with random weights."""
    from mlx.utils import tree_flatten
    from mlx_vlm.utils import get_model_and_args

    folder.mkdir()
    config = {**ENCODER, "model_type": kind}
    found, _ = get_model_and_args(config={**config, "model_type": kind.replace("-", "_")})
    model = found.Model(found.ModelConfig.from_dict(config))
    rng = np.random.default_rng(5)
    weights = {
        name: rng.standard_normal(value.shape).astype(np.float32) for name, value in tree_flatten(model.parameters())
    }
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    checkpoints._write_tokenizer(folder, "PreTrainedTokenizerFast")
    return folder


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta"])
def test_encoders_give_the_same_vectors_in_a_batch_as_alone(tmp_path: Path, kind: str) -> None:
    loaded = load(write_encoder(tmp_path / kind, kind), "embedding")
    texts = ("a", "a longer text", "one of quite another length than these")
    alone = np.concatenate([embed(loaded, text) for text in texts])
    np.testing.assert_allclose(embed(loaded, *texts), alone, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


@pytest.mark.parametrize(("kind", "limit"), [("bert", 66), ("xlm-roberta", 64)])
def test_an_encoder_takes_only_what_its_positions_hold(tmp_path: Path, kind: str, limit: int) -> None:
    loaded = load(write_encoder(tmp_path / kind, kind), "embedding")
    assert loaded.context == limit
    start_embedding(loaded, EmbeddingRequest(id="e", model="m", inputs=("x" * limit,)))
    with pytest.raises(InvalidRequest, match=f"this model takes {limit}"):
        start_embedding(loaded, EmbeddingRequest(id="e", model="m", inputs=("x" * (limit + 1),)))


def test_the_length_that_a_model_was_trained_on_bounds_its_inputs(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    assert load(folder, "embedding").context == 20


def test_the_checkpoint_s_own_pooling_is_used(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    mean = load(folder, "embedding")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}'
    )
    first = load(folder, "embedding")
    tokens = mx.array([list(b"some text")])
    hidden = np.array(first.model(tokens, attention_mask=mx.ones_like(tokens)).last_hidden_state)[0]
    expected = hidden[0] / np.linalg.norm(hidden[0])
    np.testing.assert_allclose(embed(first, tuple(b"some text"))[0], expected, atol=1e-5)
    assert np.abs(embed(mean, tuple(b"some text"))[0] - expected).max() > 1e-3


def test_a_pooling_that_the_library_lacks_is_refused_at_loading(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "bert", "bert")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_weightedmean_tokens": true}')
    with pytest.raises(LoadError, match="weightedmean"):
        load(folder, "embedding")


def template_alone(folder: Path) -> None:
    """The chat template only in chat_template.json, as processors have it."""
    edit(folder / "tokenizer_config.json", chat_template=None)
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": text}))


def templates_by_name(folder: Path) -> None:
    text = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    edit(folder / "tokenizer_config.json", chat_template=[{"name": "plain", "template": text}])


def marked(folder: Path) -> None:
    """A byte order mark before every text."""
    for file in folder.iterdir():
        if file.suffix in (".json", ".jinja"):
            file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())


def with_strays(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    for name in ("._model.safetensors", "consolidated.safetensors", "model 2.safetensors", "adapters.safetensors"):
        (folder / name).write_bytes(weights[:100])
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00003.safetensors"}}')
    (folder / "original").mkdir()
    (folder / "original" / "x.safetensors").write_bytes(b"half")
    (folder / "notes.json").write_text("{not json")


@pytest.mark.parametrize("name", ["broken", "a [1]* b?", "50% ..x", "模型 é", 'we"ird\n', "n" * 255])
@pytest.mark.parametrize("change", [lambda _: None, template_alone, templates_by_name, marked, with_strays])
def test_what_people_s_disks_do_to_a_folder_changes_no_answer(
    checkpoint: Callable[..., Path], tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    folder = Path(shutil.copytree(checkpoint("plain"), tmp_path / name))
    change(folder)
    loaded, whole = load(folder, "chat"), load(checkpoint("plain"), "chat")
    asked = [{"role": "user", "content": "hello"}]
    ids, expected = (
        model.tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        for model in (loaded, whole)
    )
    assert ids == expected
    logits, right = (model.model.language_model(mx.array([ids])).logits for model in (loaded, whole))
    assert mx.array_equal(logits, right)


def test_a_tokenizer_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "Unheard"}}')
    with pytest.raises(LoadError, match=r"tokenizer\.json cannot be read"):
        load(folder, "chat")


@pytest.mark.parametrize("kind", ["vision", "qwen3_asr"])
def test_a_folder_is_as_it_was_after_it_was_loaded(
    checkpoint: Callable[..., Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary" / "duet-model-999999999-left").mkdir(parents=True)  # of a worker that was killed
    folder = Path(shutil.copytree(checkpoint(kind), tmp_path / "folder"))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    load(folder, "asr" if kind == "qwen3_asr" else "chat")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert not list((tmp_path / "temporary").iterdir())
