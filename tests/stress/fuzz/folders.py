"""Model folders of every kind that the engine serves, and seeded damage to them."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.checkpoints import write

KINDS = ("plain", "four bits", "embedding", "windowed", "hybrid", "vision", "qwen3_asr")
MARK = "code-of-a-model-folder-ran"
"""The name of a file that appears in the folder above if code of a model folder ever runs."""
Damage = Callable[[random.Random, Path], None]

_WILD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 7, 1 << 31, 1 << 40, 1 << 62, 0.5, 1e308, float("nan"), "", "4", "../../etc/passwd", "x" * 10_000,
    [], [1], [[]] * 10, {}, {"a": {"b": 1}},
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One damaged folder. `number` and the seed make it again."""

    number: int
    kind: str
    damage: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        return f"folder {self.number}: {self.kind} ({', '.join(self.damage) or 'whole'})"


def whole_folders(place: Path) -> dict[str, Path]:
    return {kind: write(kind, place / kind.replace(" ", "-")) for kind in KINDS}


def make(seed: int, number: int, whole: dict[str, Path], models: Path) -> Case:
    """Case `number` of a run, written to `models`: one of `whole` with one to three kinds of damage. One in thirty stays
    whole."""
    random_ = random.Random(f"{seed}/{number}")
    kind = random_.choice(KINDS)
    name = f"fuzz-{number}"
    folder = models / name
    shutil.copytree(whole[kind], folder)
    done: list[str] = []
    for _ in range(0 if random_.random() < 1 / 30 else random_.choice((1, 1, 1, 2, 3))):
        damage = random_.choice(DAMAGE)
        try:
            damage(random_, folder)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue  # what an earlier damage left cannot be damaged this way
        done.append(damage.__name__)
    return Case(number, kind, tuple(done), name)


def remove(case: Case, models: Path) -> None:
    folder = models / case.name
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


# Damage ---------------------------------------------------------------------------------------------------------------


def _file(random_: random.Random, folder: Path) -> Path:
    return random_.choice(sorted(path for path in folder.iterdir() if path.is_file()))


def _json_file(random_: random.Random, folder: Path) -> Path:
    return random_.choice(sorted(folder.glob("*.json")))


def missing_file(random_: random.Random, folder: Path) -> None:
    _file(random_, folder).unlink()


def renamed_file(random_: random.Random, folder: Path) -> None:
    path = _file(random_, folder)
    path.rename(
        path.with_name(random_.choice(("._" + path.name, path.name + ".part", path.stem + " 2" + path.suffix, "x")))
    )


def empty_file(random_: random.Random, folder: Path) -> None:
    _file(random_, folder).write_bytes(b"")


def cut_file(random_: random.Random, folder: Path) -> None:
    path = _file(random_, folder)
    data = path.read_bytes()
    path.write_bytes(data[: random_.randrange(len(data))])


def flipped_bits(random_: random.Random, folder: Path) -> None:
    path = _file(random_, folder)
    data = bytearray(path.read_bytes())
    for _ in range(random_.choice((1, 8, 100))):
        data[random_.randrange(min(len(data), random_.choice((64, 2000, len(data)))))] ^= 1 << random_.randrange(8)
    path.write_bytes(data)


def sidecars(random_: random.Random, folder: Path) -> None:
    """macOS's AppleDouble files, and others that lie about in folders."""
    apple = bytes.fromhex("00051607000200004d6163204f5320582020202020202020") + bytes(random_.choice((10, 4072)))
    for path in list(folder.iterdir()):
        if random_.random() < 0.7:
            (folder / f"._{path.name}").write_bytes(apple)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (folder / name).write_bytes(random_.randbytes(100))


def stray_weights(random_: random.Random, folder: Path) -> None:
    name = random_.choice(
        (
            "adapters.safetensors",
            "consolidated.safetensors",
            "model 2.safetensors",
            "pytorch_model.bin",
            "extra.safetensors",
        )
    )
    (folder / name).write_bytes(
        random_.choice((b"", random_.randbytes(2000), (folder / "model.safetensors").read_bytes()))
    )


def pickle_weights(random_: random.Random, folder: Path) -> None:
    """A pickle that would write a file if anything loaded it."""
    code = f"open({str(folder.parent / MARK)!r}, 'w')"
    data = b"cbuiltins\nexec\n(V" + code.encode() + b"\ntR."
    name = random_.choice(
        ("pytorch_model.bin", "model.pt", "model.npz", "model.safetensors", "weights.npy", "spiece.model")
    )
    (folder / name).write_bytes(data)


def a_wild_header(random_: random.Random, folder: Path) -> None:
    """The eight bytes that say how long the header of a safetensors file is."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = random_.choice((0, 1, 7, len(data), len(data) * 2, 100_000_000, 1 << 40, 1 << 62, (1 << 64) - 1))
    path.write_bytes(struct.pack("<Q", length) + data[8:])


def a_wild_tensor(random_: random.Random, folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = random_.choice([name for name in header if name != "__metadata__"])
    match random_.randrange(6):
        case 0:
            header[name]["data_offsets"] = [0, random_.choice((1, len(data), 1 << 40, 1 << 63))]
        case 1:
            header[name]["shape"] = random_.choice(([0], [-1], [1 << 31, 1 << 31], [3], [1] * 1000, "x"))
        case 2:
            header[name]["dtype"] = random_.choice(("F8", "F64", "U8", "", None, 3, "BOOL"))
        case 3:
            del header[name]
        case 4:
            header["x" * random_.choice((1, 100_000))] = header.pop(name)
        case 5:
            header[name] = random_.choice(_WILD[:-1])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def a_wild_value(random_: random.Random, folder: Path) -> None:
    """Any value of any JSON file, at any depth."""
    path = _json_file(random_, folder)
    found = json.loads(path.read_text())
    at = found
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = random_.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and random_.random() < 0.6:
            at = at[key]
            continue
        at[key] = random_.choice(_WILD)
        break
    path.write_text(json.dumps(found))


def a_missing_value(random_: random.Random, folder: Path) -> None:
    path = _json_file(random_, folder)
    found = json.loads(path.read_text())
    del found[random_.choice(sorted(found))]
    path.write_text(json.dumps(found))


def not_an_object(random_: random.Random, folder: Path) -> None:
    text = random_.choice(
        ("[]", "3", "null", '"x"', "{", "<html>404</html>", "\ufeff{}", "{}", "version https://git-lfs")
    )
    _json_file(random_, folder).write_text(text)


def deep(random_: random.Random, folder: Path) -> None:
    depth = random_.choice((500, 5_000, 200_000))
    _json_file(random_, folder).write_text("[" * depth + "]" * depth if random_.random() < 0.5 else '{"a":' * depth)


def huge(random_: random.Random, folder: Path) -> None:
    _json_file(random_, folder).write_text(
        '{"model_type": "qwen3", "x": "' + "x" * random_.choice((1 << 20, 1 << 26)) + '"}'
    )


def no_regular_file(random_: random.Random, folder: Path) -> None:
    path = _file(random_, folder)
    path.unlink()
    match random_.randrange(5):
        case 0:
            os.mkfifo(path)
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path.name)
        case 3:
            path.symlink_to(random_.choice(("/dev/zero", "/dev/random", "/etc/hostname", "/nowhere", "/proc/self/mem")))
        case 4:
            path.symlink_to(folder)


def wild_template(random_: random.Random, folder: Path) -> None:
    text = random_.choice(
        (
            "{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ ''.__class__.__mro__ }}", "{% include '/etc/passwd' %}",
            "{{ messages[99].content }}", "", "{{ raise_exception('no') }}", "{% if %}", "{{ 'x' * 10**9 }}", "{" * 5000,
            "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        )
    )  # fmt: skip
    (folder / random_.choice(("chat_template.jinja", "chat_template.json"))).write_text(text)
    path = folder / "tokenizer_config.json"
    found = json.loads(path.read_text())
    found["chat_template"] = random_.choice((text, [{"name": "default", "template": text}], {"default": text}, 3, None))
    path.write_text(json.dumps(found))


def code_of_its_own(random_: random.Random, folder: Path) -> None:
    """Every way in which a library was ever told to run a file of a model's folder."""
    (folder / "helper.py").write_text(
        f"open({str(folder.parent / MARK)!r}, 'w').close()\nclass Helper: pass\nclass HelperConfig: pass\n"
    )
    names = (
        "AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor",
        "AutoFeatureExtractor", "AutoVideoProcessor",
    )  # fmt: skip
    extra: dict[str, Any] = random_.choice(
        (
            {
                "auto_map": {
                    name: random_.choice(("helper.Helper", ["helper.Helper", "helper.Helper"])) for name in names
                }
            },
            {"model_file": "helper.py"},
            {"custom_generate": "helper.py", "trust_remote_code": True},
            {"auto_map": {"AutoConfig": "helper.HelperConfig"}, "model_type": "helper"},
        )
    )
    for name in random_.sample(
        (
            "config.json",
            "tokenizer_config.json",
            "preprocessor_config.json",
            "processor_config.json",
            "generation_config.json",
        ),
        random_.choice((1, 2, 5)),
    ):
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**found, **extra}))


def an_index(random_: random.Random, folder: Path) -> None:
    files = random_.choice(
        (["model.safetensors"], ["model-00001-of-00002.safetensors"], ["../x.safetensors"], ["/etc/passwd"], [3], [])
    )
    found = {"metadata": {}, "weight_map": {f"w{i}": name for i, name in enumerate(files)}}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(random_.choice((found, {}, [], {"weight_map": []})))
    )


def an_adapter(random_: random.Random, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x/y"}')
    if random_.random() < 0.5:
        (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")


DAMAGE: tuple[Damage, ...] = (
    missing_file, renamed_file, empty_file, cut_file, flipped_bits, flipped_bits, sidecars, stray_weights, pickle_weights,
    a_wild_header, a_wild_tensor, a_wild_tensor, a_wild_value, a_wild_value, a_wild_value, a_missing_value, not_an_object, deep,
    huge, no_regular_file, no_regular_file, wild_template, code_of_its_own, code_of_its_own, an_index, an_adapter,
)  # fmt: skip
