"""Model folders as people have them: broken ones with what must be said of each, and odd ones that must work all the same."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.folders import safetensors, write_weights

SIDECAR = bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(4072)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
PAGE = b"<!DOCTYPE html><html><body>502 Bad Gateway</body></html>"
INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
Mutate = Callable[[Path], object]


def put(name: str, data: bytes | str | Any) -> Mutate:
    raw = data if isinstance(data, bytes) else (data if isinstance(data, str) else json.dumps(data)).encode()
    return lambda folder: (folder / name).write_bytes(raw)


def gone(*names: str) -> Mutate:
    return lambda folder: [(folder / name).unlink() for name in names]


def config(**changes: Any) -> Mutate:
    return put("config.json", {"model_type": "qwen3", **changes})


def header(text: str | bytes, data: bytes = b"", length: int | None = None) -> Mutate:
    raw = text if isinstance(text, bytes) else text.encode()
    return put("model.safetensors", struct.pack("<Q", len(raw) if length is None else length) + raw + data)


def tensors(data: bytes = b"abcd", **found: tuple[str, list[int], list[int]]) -> Mutate:
    return header(
        json.dumps({name: {"dtype": it[0], "shape": it[1], "data_offsets": it[2]} for name, it in found.items()}), data
    )


def shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for number, name in enumerate((FIRST, SECOND)):
        write_weights(folder / name, tensor=f"t{number}")


def index(folder: Path, **weight_map: Any) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def then(*steps: Mutate) -> Mutate:
    return lambda folder: [step(folder) for step in steps]


def instead(name: str, make: Callable[[Path], object]) -> Mutate:
    def mutate(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return mutate


def listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's path is short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


BAD: dict[str, tuple[Mutate, str]] = {
    # files that are none
    "no config": (gone("config.json"), "config.json is missing"),
    "empty config": (put("config.json", b""), "config.json is empty"),
    "config is no JSON": (put("config.json", "{"), "config.json is no JSON"),
    "config is a list": (put("config.json", []), "config.json is not a JSON object"),
    "config is a number": (put("config.json", "12"), "config.json is not a JSON object"),
    "config is UTF-16": (put("config.json", '{"model_type": "qwen3"}'.encode("utf-16")), "config.json is no JSON"),
    "config of brackets": (put("config.json", "[" * 200_000), "config.json is nested"),
    "config of objects": (put("config.json", '{"a":' * 400 + "1" + "}" * 400), "config.json is nested"),
    "config too long": (put("config.json", " " * (17 << 20)), "config.json has more than 16 MB"),
    "config of long numbers": (put("config.json", '{"a": ' + "9" * 10_000 + "}"), "config.json is no JSON"),
    "config is a pipe": (instead("config.json", os.mkfifo), "config.json is a pipe"),
    "config is a folder": (instead("config.json", Path.mkdir), "config.json is a folder"),
    "config is a socket": (instead("config.json", listen), "config.json is a socket"),
    "config is a device": (instead("config.json", lambda path: path.symlink_to("/dev/zero")), "config.json is a device"),
    "config is a loop": (instead("config.json", lambda path: path.symlink_to(path.name)), "config.json cannot be read"),
    "config is a dead link": (instead("config.json", lambda path: path.symlink_to("gone")), "config.json is a link"),
    "config is an LFS pointer": (put("config.json", LFS), "config.json is a Git LFS pointer"),
    "config is a page": (put("config.json", PAGE), "config.json is a web page"),
    # weights
    "no weights": (gone("model.safetensors"), "has no *.safetensors"),
    "empty weights": (put("model.safetensors", b""), "model.safetensors is empty"),
    "weights are an LFS pointer": (put("model.safetensors", LFS), "model.safetensors is a Git LFS pointer"),
    "weights are a page": (put("model.safetensors", PAGE), "model.safetensors is a web page"),
    "weights are a pipe": (instead("model.safetensors", os.mkfifo), "model.safetensors is a pipe"),
    "weights are a device": (instead("model.safetensors", lambda it: it.symlink_to("/dev/zero")), "model.safetensors is a device"),
    "weights link to a text": (instead("model.safetensors", lambda it: it.symlink_to(__file__)), "model.safetensors is not a whole"),
    "weights of seven bytes": (put("model.safetensors", b"\0" * 7), "model.safetensors is not a whole"),
    "header of 2^62": (header("{}", length=1 << 62), "model.safetensors is not a whole"),
    "header of 2^64-1": (header("{}", length=(1 << 64) - 1), "model.safetensors is not a whole"),
    "header beyond the file": (header("{}", length=3), "model.safetensors is not a whole"),
    "header of nothing": (header("", length=0), "model.safetensors is not a whole"),
    "header is a list": (header("[]"), "model.safetensors is not a whole"),
    "header of brackets": (header("[" * 90_000), "model.safetensors is not a whole"),
    "header of nested objects": (header('{"a":' * 90_000), "model.safetensors is not a whole"),
    "header is not UTF-8": (header(b'{"\xff": {}}'), "model.safetensors is not a whole"),
    "tensor is null": (header('{"a": null}'), "model.safetensors is not a whole"),
    "tensor without offsets": (header('{"a": {"dtype": "F32", "shape": [1]}}', b"abcd"), "model.safetensors is not a whole"),
    "negative shape": (tensors(a=("F32", [-1], [0, 4])), "model.safetensors is not a whole"),
    "negative offset": (tensors(a=("F32", [1], [-4, 0])), "model.safetensors is not a whole"),
    "offsets backwards": (tensors(a=("F32", [1], [4, 0])), "model.safetensors is not a whole"),
    "offsets of 2^62": (tensors(a=("F32", [1 << 60], [0, 1 << 62])), "model.safetensors has"),
    "shape of 2^40": (tensors(a=("F32", [1 << 40], [0, 4])), "model.safetensors is not a whole"),
    "shape of floats": (header('{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', b"abcd"), "not a whole"),
    "many dimensions": (tensors(a=("F32", [1] * 40, [0, 4])), "model.safetensors is not a whole"),
    "unknown type": (tensors(a=("F999", [1], [0, 4])), "unknown type 'F999'"),
    "size of another type": (tensors(a=("F16", [1], [0, 4])), "its shape contradicts"),
    "overlap": (tensors(a=("U8", [4], [0, 4]), b=("U8", [4], [0, 4])), "does not begin where"),
    "gap": (tensors(b"abcdefghij", a=("U8", [4], [0, 4]), b=("U8", [4], [6, 10])), "does not begin where"),
    "cut short": (lambda folder: os.truncate(folder / "model.safetensors", 500), "model.safetensors has 500 bytes instead"),
    "too long": (lambda folder: os.truncate(folder / "model.safetensors", 600), "model.safetensors has 600 bytes instead"),
    "a shard is missing": (then(shards, gone(SECOND)), f"{SECOND} missing"),
    "a shard has not arrived": (then(shards, gone(SECOND), put(f"{SECOND}.part", b"x")), f"{SECOND}.part is not complete"),
    "a shard is in iCloud": (then(shards, gone(SECOND), put(f".{SECOND}.icloud", b"x")), f".{SECOND}.icloud is not complete"),
    "only unfinished": (then(gone("model.safetensors"), put("model.safetensors.incomplete", b"x")), "incomplete: the folder"),
    "index beyond": (lambda folder: index(folder, a="../x.safetensors"), f"{INDEX} lists '../x"),
    "index of a folder": (lambda folder: index(folder, a=".."), f"{INDEX} lists '..'"),
    "index absolute": (lambda folder: index(folder, a="/etc/passwd"), f"{INDEX} lists '/etc"),
    "index with NUL": (lambda folder: index(folder, a="a\0.safetensors"), f"{INDEX} lists"),
    "index of other files": (lambda folder: index(folder, a="config.json"), f"{INDEX} lists 'config.json'"),
    "index of numbers": (lambda folder: index(folder, a=1), f"{INDEX} lists no files"),
    "index of nothing": (lambda folder: index(folder), f"{INDEX} lists no files"),
    "index is a list": (put(INDEX, []), f"{INDEX} is not a JSON object"),
    "index is cut": (put(INDEX, '{"weight_map": {'), f"{INDEX} is no JSON"),
    "index of brackets": (put(INDEX, "[" * 100_000), f"{INDEX} is nested"),
    "index misses one": (then(shards, lambda folder: index(folder, a=FIRST, b="gone.safetensors")), "gone.safetensors missing"),
    # other formats
    "pickle": (then(gone("model.safetensors"), put("pytorch_model.bin", b"\x80\4")), "pytorch_model.bin: "),
    "GGUF": (then(gone("model.safetensors", "config.json"), put("model.Q4_K.gguf", b"GGUF")), "model.Q4_K.gguf: "),
    "old MLX": (then(gone("model.safetensors"), put("weights.npz", b"PK")), "weights.npz: "),
    "Keras": (then(gone("model.safetensors"), put("model.keras", b"PK")), "model.keras: "),
    "adapter of PEFT": (
        then(gone("model.safetensors", "config.json"), put("adapter_config.json", {}), put("adapter_model.safetensors", safetensors("a", b"a"))),
        "adapter_model.safetensors is an adapter",
    ),
    "adapter of MLX": (then(gone("model.safetensors"), put("adapters.safetensors", safetensors("a", b"a"))), "adapters.safetensors is an adapter"),
    "only consolidated": (then(gone("model.safetensors"), put("consolidated.safetensors", safetensors("a", b"a"))), "consolidated.safetensors is no"),
    # tokenizers and templates
    "no tokenizer": (gone("tokenizer.json"), "tokenizer.json is missing"),
    "no tokenizer at all": (gone("tokenizer.json", "tokenizer_config.json"), "tokenizer.json is missing"),
    "tokenizer is empty": (put("tokenizer.json", b""), "tokenizer.json is empty"),
    "tokenizer is a list": (put("tokenizer.json", []), "tokenizer.json is not a JSON object"),
    "tokenizer is an empty object": (put("tokenizer.json", {}), "tokenizer.json is no tokenizer"),
    "tokenizer's model is a text": (put("tokenizer.json", {"model": "BPE"}), "tokenizer.json is no tokenizer"),
    "tokenizer is cut": (put("tokenizer.json", '{"model": {"type"'), "tokenizer.json is not a JSON object"),
    "tokenizer of brackets": (put("tokenizer.json", "[" * 100_000), "tokenizer.json is not a JSON object"),
    "tokenizer of objects": (put("tokenizer.json", '{"model":' * 100_000), "tokenizer.json is not a JSON object"),
    "tokenizer is a pointer": (put("tokenizer.json", LFS), "tokenizer.json is a Git LFS pointer"),
    "tokenizer is a pipe": (instead("tokenizer.json", os.mkfifo), "tokenizer.json is a pipe"),
    "tokenizer settings are a list": (put("tokenizer_config.json", []), "tokenizer_config.json is not a JSON object"),
    "tokenizer settings are deep": (put("tokenizer_config.json", '{"a":' * 50_000 + "1" + "}" * 50_000), "tokenizer_config.json is nested"),
    "tokenizer in code": (
        then(gone("tokenizer.json"), put("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}})),
        "tokenizer_config.json: the tokenizer is code",
    ),
    "template is a number": (put("tokenizer_config.json", {"chat_template": 5}), "tokenizer_config.json: chat_template"),
    "template of names": (put("tokenizer_config.json", {"chat_template": ["default"]}), "tokenizer_config.json: chat_template"),
    "template too long": (put("chat_template.jinja", b"a" * (2 << 20)), "chat_template.jinja has more than"),
    "template is not UTF-8": (put("chat_template.jinja", b"\xff\xfe"), "chat_template.jinja is not UTF-8"),
    "template is a list": (then(put("tokenizer_config.json", {}), put("chat_template.json", [])), "chat_template.json is not"),
    "generation settings are cut": (put("generation_config.json", "{"), "generation_config.json is no JSON"),
    "preprocessor is a list": (put("preprocessor_config.json", []), "preprocessor_config.json is not"),
    # what config.json says
    "no type": (put("config.json", {}), "config.json has no model_type"),
    "type is null": (config(model_type=None), "config.json has no model_type"),
    "type is a list": (config(model_type=["qwen3"]), "config.json has no model_type"),
    "type is a path": (config(model_type="../../x"), "config.json has no model_type"),
    "type is unknown": (config(model_type="never_heard_of"), "no architecture never_heard_of"),
    "type is a module": (config(model_type="qwen3.qwen3"), "no architecture qwen3.qwen3"),
    "type of another recogniser": (config(model_type="whisper"), "whisper does not transcribe here: Qwen3-ASR does"),
    "an encoder nobody runs": (config(model_type="roberta"), "no architecture roberta"),
    "an aligner": (config(model_type="qwen3_asr", thinker_config={"classify_num": 5}), "forced aligner"),
    "a recogniser without ears": (then(config(model_type="qwen3_asr"), gone("preprocessor_config.json")), "preprocessor_config.json is missing"),
    "code": (config(model_file="x.py"), "config.json names code of the folder (model_file"),
    "only code": (config(model_type="mine", auto_map={"AutoModel": "a.B"}), "architecture mine is code of the folder (auto_map)"),
    "no layers": (config(num_hidden_layers=0), "config.json: num_hidden_layers is 0"),
    "2^40 layers": (config(num_hidden_layers=1 << 40), "config.json: num_hidden_layers is 1099511627776"),
    "more layers than tensors": (config(num_hidden_layers=2), "the weights have only 1 tensors"),
    "hidden size 2^40": (config(hidden_size=1 << 40), "config.json: hidden_size"),
    "hidden size 0": (config(hidden_size=0), "config.json: hidden_size is 0"),
    "hidden size -1": (config(hidden_size=-1), "config.json: hidden_size is -1"),
    "hidden size in words": (config(hidden_size="many"), "config.json: hidden_size is 'many'"),
    "hidden size of floats": (config(hidden_size=1.5), "config.json: hidden_size is 1.5"),
    "heads 0": (config(num_attention_heads=0), "config.json: num_attention_heads is 0"),
    "vocabulary 2^40": (config(vocab_size=1 << 40), "config.json: vocab_size"),
    "nested sizes": (config(text_config={"vocab_size": 0}), "config.json: text_config.vocab_size is 0"),
    "deeper sizes": (config(thinker_config={"text_config": {"hidden_size": 1 << 50}}), "thinker_config.text_config.hidden_size"),
    "vision sizes": (config(vision_config={"depth": 1 << 30}), "config.json: vision_config.depth"),
    "text_config is a list": (config(text_config=[1]), "config.json: text_config is not an object"),
    "vision_config is a number": (config(vision_config=1), "config.json: vision_config is not an object"),
    "odd bits": (config(quantization={"bits": 7, "group_size": 64}), "quantization: bits is 7"),
    "odd group": (config(quantization={"bits": 4, "group_size": 65}), "quantization: group_size is 65"),
    "bits in words": (config(quantization={"bits": "4", "group_size": 64}), "quantization: bits is '4'"),
    "bits are a list": (config(quantization={"bits": [4], "group_size": 64}), "quantization: bits is [4]"),
    "no bits": (config(quantization={"group_size": 64}), "quantization: bits is None"),
    "odd bits of a layer": (config(quantization={"bits": 4, "group_size": 64, "a.b": {"bits": 0}}), "quantization: bits is 0"),
    "quantization is a list": (config(quantization=[4]), "quantization is not an object"),
}  # fmt: skip


ODD: dict[str, tuple[Mutate, tuple[str, ...]]] = {
    "sidecars": (then(put("._model.safetensors", SIDECAR), put("._config.json", SIDECAR), put("._x.safetensors", SIDECAR)), ("chat",)),
    "what systems leave": (then(*(put(name, b"\0") for name in (".DS_Store", "Thumbs.db", "desktop.ini", "Icon\r"))), ("chat",)),
    "a copy of iCloud's": (put("model 2.safetensors", safetensors("model.embed_tokens.weight", b"a")), ("chat",)),
    "a damaged copy": (put("model 2.safetensors", b"half"), ("chat",)),
    "a copy of a browser's": (put("model(1).safetensors", b"half"), ("chat",)),
    "half precision beside": (put("model.fp16.safetensors", safetensors("model.embed_tokens.weight", b"a")), ("chat",)),
    "the same under another name": (put("other.safetensors", safetensors("model.embed_tokens.weight", b"a")), ("chat",)),
    "consolidated beside": (put("consolidated.safetensors", safetensors("x", b"a")), ("chat",)),
    "optimizer beside": (put("optimizer.safetensors", safetensors("x", b"a")), ("chat",)),
    "adapter beside": (then(put("adapters.safetensors", safetensors("x", b"a")), put("adapter_config.json", {})), ("chat",)),
    "pickles beside": (then(put("pytorch_model.bin", b"\x80"), put("model.pt", b"\x80"), put("x.npy", b"\x93")), ("chat",)),
    "an unfinished other": (put("mtp.safetensors.part", b"half"), ("chat",)),
    "a folder of another program": (lambda it: (it / "original").mkdir() or (it / "original/consolidated.00.pth").touch(), ("chat",)),
    "strays beside an index": (then(lambda it: index(it, a="model.safetensors"), put("stray.safetensors", b"half")), ("chat",)),
    "an index of before": (lambda it: index(it, a="model-00001-of-00004.safetensors"), ("chat",)),
    "shards": (shards, ("chat",)),
    "shards and an index": (then(shards, lambda it: index(it, t0=FIRST, t1=SECOND)), ("chat",)),
    "a BOM": (put("config.json", b"\xef\xbb\xbf" + b'{"model_type": "qwen3"}'), ("chat",)),
    "a BOM in the tokenizer": (put("tokenizer.json", b"\xef\xbb\xbf" + b'{"model": {}}'), ("chat",)),
    "a map of code beside a known type": (config(auto_map={"AutoConfig": "a.B"}), ("chat",)),
    "no template": (put("tokenizer_config.json", {}), ("completions",)),
    "no tokenizer settings": (gone("tokenizer_config.json"), ("completions",)),
    "a template of its own": (then(put("tokenizer_config.json", {}), put("chat_template.jinja", "{{ 1 }}")), ("chat",)),
    "a template as JSON": (then(put("tokenizer_config.json", {}), put("chat_template.json", {"chat_template": "{{ 1 }}"})), ("chat",)),
    "a list of templates": (put("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "x"}]}), ("chat",)),
    "templates by name": (put("tokenizer_config.json", {"chat_template": {"rag": "x"}}), ("chat",)),
    "a nested text model": (config(text_config={"vocab_size": 5}), ("chat",)),
    "nulls": (config(text_config=None, vision_config=None, num_experts=None, quantization=None), ("chat",)),
    "a vision model": (config(model_type="qwen3_vl", vision_config={}), ("chat", "vision")),
    "an embedding model": (put("modules.json", []), ("embedding",)),
    "a recogniser": (config(model_type="qwen3_asr"), ("asr",)),
    "an omni model is no recogniser": (config(model_type="qwen3_omni_moe", thinker_config={}), ("chat",)),
    "per layer rules": (config(quantization={"bits": 4, "group_size": 64, "lm_head": False, "a": {"bits": 8, "group_size": 32}}), ("chat",)),
    "weights by link": (lambda it: (it / "model.safetensors").rename(it.parent / "w") and (it / "model.safetensors").symlink_to(it.parent / "w"), ("chat",)),
}  # fmt: skip
