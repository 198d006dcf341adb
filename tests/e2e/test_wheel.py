"""The wheel alone, in a clean environment: no torch, and `duet up --embedded` answers chat and transcription."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import models
from duet.testing.stack import free_ports

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parents[2]


def uv() -> str:
    found = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")
    assert Path(found).exists(), "uv is missing: `make test` installs it"
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it names, resolved without our lock."""
    folder = tmp_path_factory.mktemp("wheel")
    python = ROOT / ".venv" / "bin" / "python"
    build = [
        uv(),
        "build",
        "--wheel",
        "--no-build-isolation",
        "--python",
        str(python),
        "-q",
        "-o",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("mlx_duet-*.whl")
    subprocess.run([uv(), "venv", "-q", "--python", str(python), str(folder / "venv")], check=True)
    target = str(folder / "venv" / "bin" / "python")
    subprocess.run([uv(), "pip", "install", "-q", "--python", target, str(wheel)], check=True)
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def served(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, str]]:
    """(engine URL, router URL, key) of `duet up --embedded`, run from another folder with another home."""
    home = tmp_path_factory.mktemp("user")
    engine_port, router_port = free_ports(2)
    environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
    command = [
        str(installed / "duet"),
        "up",
        "--embedded",
        "--engine-port",
        str(engine_port),
        "--router-port",
        str(router_port),
    ]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=log, stderr=log, start_new_session=True)
    urls = [f"http://127.0.0.1:{port}" for port in (engine_port, router_port)]
    try:
        deadline = time.monotonic() + 90
        for url in urls:
            while not answers(f"{url}/ready"):
                assert process.poll() is None, (home / "log").read_text()
                assert time.monotonic() < deadline, (home / "log").read_text()
                time.sleep(0.2)
        yield urls[0], urls[1], (home / ".duet" / "api_key").read_text().strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


def test_the_wheel_brings_no_torch(installed: Path) -> None:
    listed = subprocess.run(
        [uv(), "pip", "list", "--format", "freeze", "--python", str(installed / "python")],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert "mlx-duet" in names
    assert not [name for name in names if name.startswith(("torch", "nvidia"))]


def test_duet_up_embedded_answers_chat_and_transcription(served: tuple[str, str, str]) -> None:
    engine, router, key = served
    headers = {"Authorization": f"Bearer {key}"}
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Who are you?"}],
    }
    chat = httpx.post(f"{engine}/v1/chat/completions", json=body, headers=headers, timeout=60)
    assert chat.status_code == 200, chat.text
    assert "demonstration" in chat.json()["choices"][0]["message"]["content"]
    files = {"file": ("clip.flac", (models.CARDS / "demo" / "clip_zh.flac").read_bytes())}
    heard = httpx.post(f"{router}/v1/audio/transcriptions", files=files, headers=headers, timeout=60)
    assert heard.status_code == 200, heard.text
    assert "数据库" in heard.json()["text"]


def test_every_module_of_the_wheel_imports_without_the_tools_of_development(installed: Path) -> None:
    """What cannot be imported in a user's environment has no place in the wheel."""
    code = """
import importlib, pkgutil
rooms = ["duet", "engine", "asr_router", "pipelines", "speech", "launchd", "models", "benchmarks"]
names = [m.name for room in rooms for m in pkgutil.walk_packages(importlib.import_module(room).__path__, room + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(*names)
"""
    found = subprocess.run([str(installed / "python"), "-c", code], capture_output=True, text=True, cwd=installed)
    assert found.returncode == 0, found.stderr
    names = found.stdout.split()
    assert "engine.worker.loop" in names
    assert {name for name in names if name.startswith("benchmarks.") and "accuracy" not in name} == set()
