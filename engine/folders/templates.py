"""Chat templates lie in four places, in two forms each."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Final

from engine.folders.reading import Problem, read_bytes, read_object

TEMPLATE_BYTES: Final = 1 << 20
FILE: Final = "chat_template.jinja"
_LEGACY: Final = "chat_template.json"


def read_template(folder: Path, names: Container[str], tokenizer: Mapping[str, Any]) -> str | None:
    """The chat template of a folder with the files `names` and the tokenizer's settings, if any. Raises `Problem`."""
    if FILE in names:
        try:
            return read_bytes(folder / FILE, TEMPLATE_BYTES).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise Problem(f"{FILE} is not UTF-8: download it again") from error
    if found := _chosen("tokenizer_config.json", tokenizer.get("chat_template")):
        return found
    return _chosen(_LEGACY, read_object(folder / _LEGACY).get("chat_template")) if _LEGACY in names else None


def _chosen(file: str, found: Any) -> str | None:
    """A template, or the default one of several: a list of names and templates, or an object of them."""
    if isinstance(found, list) and all(isinstance(entry, dict) for entry in found):
        found = {entry.get("name"): entry.get("template") for entry in found}
    if isinstance(found, dict):
        found = found.get("default", next(iter(found.values()), None))
    if found is not None and (not isinstance(found, str) or len(found) > TEMPLATE_BYTES):
        raise Problem(f"{file}: chat_template is no template, or longer than {TEMPLATE_BYTES >> 20} MB")
    return found or None
