"""No code of a model folder runs: whatever its files name, and whatever a library would do with it."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import json
import pickle
import py_compile
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from engine.folders.inspection import read
from engine.worker.runtime.loader import LoadError, load
from engine.worker.runtime.view import shown_to_libraries
from engine.worker.runtime.wall import ForbiddenCode, no_code_of

HELPER = """\
open({proof!r}, "a").write("ran ")
from transformers import PretrainedConfig, ProcessorMixin, PreTrainedTokenizerFast
class Settings(PretrainedConfig):
    model_type = {kind!r}
class Words(PreTrainedTokenizerFast): pass
class Other(ProcessorMixin): pass
"""
ALL = {
    "AutoConfig": "helper.Settings", "AutoModel": "helper.Other", "AutoModelForCausalLM": "helper.Other",
    "AutoModelForImageTextToText": "helper.Other", "AutoProcessor": "helper.Other", "AutoImageProcessor": "helper.Other",
    "AutoVideoProcessor": "helper.Other", "AutoFeatureExtractor": "helper.Other", "AutoTokenizer": ["helper.Words", None],
}  # fmt: skip
KINDS = {"plain": "chat", "vision": "chat", "hybrid": "chat", "qwen3_asr": "asr", "embedding": "embedding"}
POISON: dict[str, dict[str, Any]] = {
    "config.json": {"auto_map": ALL},
    "config.json and trust": {"auto_map": ALL, "trust_remote_code": True, "custom_pipelines": {"x": {"impl": "helper.Other"}}},
    "config.json inside": {"text_config+": {"auto_map": ALL, "model_file": "helper.py"}},
    "tokenizer_config.json": {"auto_map": ALL},
    "tokenizer_config.json and class": {"auto_map": ALL, "tokenizer_class": "Words"},
    "tokenizer_config.json without map": {"tokenizer_class": "helper.Words"},
    "processor_config.json": {"auto_map": ALL, "processor_class": "Other"},
    "preprocessor_config.json": {"auto_map": ALL, "image_processor_type": "Other", "feature_extractor_type": "Other"},
    "video_preprocessor_config.json": {"auto_map": ALL, "video_processor_type": "Other"},
    "generation_config.json": {"auto_map": ALL, "custom_generate": "helper"},
    "special_tokens_map.json": {"auto_map": ALL},
    "hf_quant_config.json": {"auto_map": ALL},
}  # fmt: skip


def poisoned(folder: Path, proof: Path, place: str) -> Path:
    name, changes = place.split(" ")[0], POISON[place]
    known = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
    for key, value in changes.items():
        inner = key.removesuffix("+")
        known[inner] = {**known.get(inner, {}), **value} if key.endswith("+") else value
    (folder / name).write_text(json.dumps(known))
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    code = HELPER.format(proof=str(proof), kind=kind)
    places = (
        "helper.py",
        "custom_generate/generate.py",
        "modeling_custom.py",
        "__init__.py",
        "conftest.py",
        "sitecustomize.py",
    )
    for file in places:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(code)
    (folder / "requirements.txt").write_text("evil==1.0\n")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(proof)))
    return folder


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._proof,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", POISON)
def test_a_folder_that_names_code_loads_without_it_or_is_refused_by_name(
    checkpoint: Callable[..., Path], tmp_path: Path, kind: str, place: str
) -> None:
    proof, before = tmp_path / "ran", list(sys.path)
    folder = poisoned(Path(shutil.copytree(checkpoint(kind), tmp_path / "folder")), proof, place)
    try:
        loaded = load(folder, KINDS[kind])
        assert KINDS[kind] in loaded.capabilities
    except LoadError as error:
        assert "folder" in str(error)
        assert "class" in place or "without map" in place or "inside" in place, error
    assert not proof.exists()
    assert sys.path == before
    assert not any(str(folder) in str(getattr(module, "__file__", "")) for module in [*sys.modules.values()])


def test_an_architecture_that_exists_only_as_code_is_refused_by_file_and_key(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = poisoned(Path(shutil.copytree(checkpoint("plain"), tmp_path / "new")), tmp_path / "ran", "config.json")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "brand_new"}))
    with pytest.raises(LoadError, match=r"config\.json: the architecture brand_new is code of the folder \(auto_map\)"):
        load(folder, "chat")
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "helper.py"}))
    with pytest.raises(LoadError, match=r"config\.json names code of the folder \(model_file: 'helper\.py'\)"):
        load(folder, "chat")
    assert not (tmp_path / "ran").exists()


def test_libraries_see_no_code_no_pickle_and_no_sidecar(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = poisoned(
        Path(shutil.copytree(checkpoint("vision"), tmp_path / "a [1]* b")), tmp_path / "ran", "config.json"
    )
    for name in ("._model.safetensors", ".DS_Store", "model 2.safetensors", "adapters.safetensors", "weights.npz"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    with shown_to_libraries(folder, read(folder)) as view:
        seen = {file.name for file in view.rglob("*")}
        assert seen <= {file.name for file in folder.iterdir()}
        assert {name.rpartition(".")[2] for name in seen} <= {"safetensors", "json", "jinja", "txt"}
        assert [name for name in seen if name.endswith(".safetensors")] == ["model.safetensors"]
        assert not any("auto_map" in file.read_text() for file in view.glob("*config.json"))
    assert not view.exists()


def by_spec(folder: Path) -> None:
    spec = importlib.util.spec_from_file_location("helper", folder / "helper.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def by_bytecode(folder: Path) -> None:
    loader = importlib.machinery.SourcelessFileLoader("helper", str(folder / "helper.pyc"))
    spec = importlib.util.spec_from_loader("helper", loader)
    assert spec is not None
    loader.exec_module(importlib.util.module_from_spec(spec))


def by_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        import helper  # type: ignore[import-not-found]  # noqa: F401
    finally:
        sys.path.remove(str(folder))


def by_transformers(folder: Path) -> None:
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    get_class_from_dynamic_module("helper.Other", str(folder))


def by_numpy(folder: Path) -> None:
    np.load(folder / "helper.npy", allow_pickle=True)


def by_pickle_in_a_readable_file(folder: Path) -> None:
    pickle.loads((folder / "helper.txt").read_bytes())


WAYS: dict[str, Callable[[Path], object]] = {
    "spec": by_spec,
    "bytecode": by_bytecode,
    "sys.path": by_path,
    "runpy": lambda folder: runpy.run_path(str(folder / "helper.py")),
    "exec": lambda folder: exec(compile((folder / "helper.txt").read_bytes(), str(folder / "helper.txt"), "exec")),
    "source": lambda folder: exec((folder / "helper.py").read_text()),
    "native": lambda folder: ctypes.CDLL(str(folder / "helper.so")),
    "extension": lambda folder: importlib.machinery.ExtensionFileLoader(
        "helper", str(folder / "helper.so")
    ).create_module(importlib.machinery.ModuleSpec("helper", None, origin=str(folder / "helper.so"))),
    "transformers": by_transformers,
    "numpy": by_numpy,
    "pickle": by_pickle_in_a_readable_file,
    "link": lambda folder: runpy.run_path(str(folder.parent / "link" / "helper.py")),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_wall_stands_whatever_a_library_does(tmp_path: Path, way: str) -> None:
    folder, proof = tmp_path / "folder", tmp_path / "ran"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    code = f"open({str(proof)!r}, 'w')\n"
    for name in ("helper.py", "helper.txt"):
        (folder / name).write_text(code)
    py_compile.compile(str(folder / "helper.py"), cfile=str(folder / "helper.pyc"))
    shutil.copy(msgspec._core.__file__, folder / "helper.so")
    if way == "pickle":
        (folder / "helper.txt").write_bytes(pickle.dumps(Evil(proof)))
    np.save(folder / "helper.npy", np.array([Evil(proof)], dtype=object), allow_pickle=True)
    with pytest.raises((ForbiddenCode, OSError, ImportError, ValueError)) as caught, no_code_of(folder):
        WAYS[way](folder)
    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert any(isinstance(error, ForbiddenCode) for error in chain), caught.value
    assert not proof.exists()


def test_outside_of_a_load_the_wall_is_in_nobody_s_way(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("x = 1")
    with no_code_of(tmp_path):
        pass
    assert runpy.run_path(str(tmp_path / "helper.py"))["x"] == 1
    assert pickle.loads(pickle.dumps(Path("a"))) == Path("a")
