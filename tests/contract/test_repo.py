"""The repository keeps its own rules."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (".py", ".md", ".toml", ".txt", ".lock", ".json", ".yml", ".sh", "")


def tracked() -> list[Path]:
    """Files of the repository; of the folder where there is no git (an unpacked archive)."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0 and listed.stdout:
        return [ROOT / name for name in listed.stdout.splitlines()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def test_the_lock_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?:|file:|index-url|find-links", text)
    pinned = re.findall(r"^[a-z0-9._-]+==", text, re.MULTILINE)
    assert len(pinned) > 80
    assert text.count("--hash=sha256:") > len(pinned)
    assert "torch==" not in "\n".join(line for line in text.splitlines() if "sys_platform == 'never'" not in line)


def test_no_file_names_this_machine_or_is_large() -> None:
    for path in tracked():
        if not path.exists() or path == Path(__file__):
            continue
        assert path.stat().st_size < 8 << 20, path
        if path.suffix in TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert "/wor" + "k/" not in text, path
            assert "/tm" + "p/duet" not in text, path


@pytest.mark.parametrize(
    "module", ["engine.app", "engine.pool", "asr_router.app", "pipelines.jobs.worker", "duet.cli.main"]
)
def test_only_workers_import_mlx(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] in ('mlx', 'mlx_vlm', 'torch') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["engine.app", "engine.__main__", "asr_router.app", "asr_router.__main__", "pipelines.jobs.worker"]
)
def test_no_service_carries_what_reads_foreign_audio_or_pictures(module: str) -> None:
    """FFmpeg and Pillow's codecs run in children, which a file may end."""
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] in ('av', 'PIL') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_the_command_line_starts_without_the_services() -> None:
    code = (
        "import sys, duet.cli.main; sys.exit(any(m.split('.')[0] in ('dbos', 'numpy', 'fastapi') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "module", ["duet.cli.up", "duet.cli.status", "duet.cli.client", "pipelines.jobs.client", "pipelines.clients"]
)
def test_what_serves_nothing_does_not_carry_the_web_framework(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m.split('.')[0] in ('fastapi', 'uvicorn') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_every_documented_command_exists() -> None:
    from typer.testing import CliRunner

    from duet.cli.main import app

    known = set(CliRunner().invoke(app, ["--help"]).output.split())
    text = "\n".join(
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/operations.md", "CHANGELOG.md")
    )
    for verb in set(re.findall(r"`duet (\w+)", text)) | set(re.findall(r"^duet (\w+)", text, re.MULTILINE)):
        assert verb in known, f"duet {verb}"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_path_exists(page: Path) -> None:
    """A path is written from the root of the repository, or ends in `/` or `.py` and is the end of one. In `engine/NAME.py` the
    folder must exist."""
    files = [path.relative_to(ROOT) for path in tracked() if path.exists()]
    known = {f"/{path}" for file in files for path in (file, *file.parents)}
    roots = {file.parts[0] for file in files}
    for span in re.findall(r"`([\w.*/-]+)`", page.read_text(encoding="utf-8")):
        parts = span.rstrip("/").split("/")
        if span.startswith(("/", "NAME")) or not (parts[0] in roots or span.endswith(("/", ".py"))):
            continue
        named = next((i for i, part in enumerate(parts) if "*" in part or "NAME" in part), len(parts))
        wanted = "/" + "/".join(parts[:named])
        assert any(path.endswith(wanted) for path in known), f"{page.name}: {span}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_documented_module_can_be_found(page: Path) -> None:
    for module in re.findall(r"python3? -m ([\w.]+\w)", page.read_text(encoding="utf-8")):
        assert importlib.util.find_spec(module) is not None, f"{page.name}: python -m {module}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_documents_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {link}"


def test_every_endpoint_of_both_services_is_documented(tmp_path: Path) -> None:
    import asr_router.app
    import engine.app
    from asr_router.transcribing import Transcriber
    from duet.settings import Settings

    settings = Settings(home=tmp_path)
    backend: Any = object()  # no request is sent
    apps = (
        engine.app.create_app(backend, settings, key="key"),
        asr_router.app.create_app(settings, Transcriber([], max_audio_seconds=1), key="key"),
    )
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = {re.sub(r"\{\w+\}", "{}", name) for name in re.findall(r"`((?:GET|POST|DELETE) /[^`?]*)", text)}
    for app in apps:
        paths = app.openapi()["paths"]
        assert len(paths) > 5
        for path, methods in paths.items():
            for method in methods:
                name = f"{method.upper()} {re.sub(r'{[^}]*}', '{}', path)}"
                assert name in documented, f"{app.title}: {name}"


def test_the_vad_model_is_that_of_the_silero_vad_package() -> None:
    from importlib.metadata import files

    from speech.vad import MODEL

    (original,) = [file for file in files("silero-vad") or [] if file.name == MODEL.name]
    assert MODEL.read_bytes() == original.read_binary()


SHIPPED = ("asr_router", "duet", "engine", "launchd", "pipelines", "speech")
LONGEST_FILE, LONGEST_FUNCTION = 400, 50


@pytest.mark.parametrize("room", SHIPPED)
def test_a_shipped_file_and_a_function_can_be_read_at_one_sitting(room: str) -> None:
    files = [path for path in tracked() if path.suffix == ".py" and path.is_relative_to(ROOT / room) and path.exists()]
    assert files
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= LONGEST_FILE, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < LONGEST_FUNCTION, f"{path}: {node.name}"


def test_a_decision_says_what_it_was_chosen_over() -> None:
    pages = sorted((ROOT / "docs" / "adr").glob("*.md"))
    for number, path in enumerate(pages, 1):
        text = path.read_text(encoding="utf-8")
        headings = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
        assert headings == ["Context", "Alternatives", "Decision", "Consequence"], path
        assert path.name.startswith(f"{number:04}-"), f"{path}: a gap"
        assert text.startswith(f"# {number}. "), path
        assert "\nThe failure this prevents: " in text.partition("## Consequence")[2], path


def test_every_top_level_package_is_under_the_import_contracts() -> None:
    """A new one would otherwise import whatever it likes, unseen."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    guarded = set(config["tool"]["importlinter"]["root_packages"])
    free = {"tests", "training"}  # neither is shipped, and both may import everything
    packages = {path.parent.name for path in tracked() if path.name == "__init__.py" and path.parent.parent == ROOT}
    assert packages == guarded | free


def test_every_package_of_several_modules_has_a_contract_that_a_new_module_is_under() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    patterns = [
        container
        for contract in config["contracts"]
        if contract.get("exhaustive")
        for container in contract["containers"]
    ]
    modules: dict[str, set[str]] = {}
    for path in tracked():
        names = path.relative_to(ROOT).with_suffix("").parts
        if path.name == "__init__.py":
            names = names[:-1]  # a package counts as a module of the package around it
        if path.suffix == ".py" and path.exists() and len(names) > 1 and names[0] in config["root_packages"]:
            modules.setdefault(".".join(names[:-1]), set()).add(names[-1])
    several = {package for package, found in modules.items() if len(found) > 1}
    # `package.*` holds every child of the package to the same layers, so a new child is noticed as well.
    patterns += [pattern.removesuffix(".*") for pattern in patterns]
    # Variants side by side: none imports another, and a new one needs no line.
    apart = [module for contract in config["contracts"] for module in contract.get("modules", ())]
    patterns += [module.removesuffix(".*") for module in apart if module.endswith(".*")]
    assert {package for package in several if not any(fnmatch(package, pattern) for pattern in patterns)} == set()
