"""Settings: read once at start, frozen, loud, passed in.

Precedence: environment (`DUET_ENGINE__PORT`), then `$DUET_HOME/config.toml`, then the defaults below. A value of the wrong type
is an error that names the key, in the file and in the environment alike. So is an unknown key of the file. An unknown variable
has no effect, and `unknown_variables` tells it: it may be another program's, as `DUET_KEY` is a client's.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from duet.sources import PREFIX, SettingsError, from_environment, from_file, home_folder, place, unknown

EXIT_CONFIG = 78  # EX_CONFIG of sysexits(3)
# Where the hub's library keeps its files, and whether it may fetch any. That library reads them, we do not.
HUB_NAMES = ("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME")

Folder = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A folder as the user writes it, made absolute: a service that starts at login has another working directory."""


LOCAL_ORIGINS = ("http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._\[\]:-]*[a-z0-9._\]-](:\*)?", re.IGNORECASE)


def _origin(text: str) -> str:
    if text not in ("*", "null") and not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is no origin: SCHEME://HOST[:PORT] without a path, with :* for any port, or *")
    return text


Origin = Annotated[str, AfterValidator(_origin)]
"""Where a web page comes from, as browsers write it in the header Origin."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EngineSettings(_Section):
    """Service 1. Sizes in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = Field(18080, ge=0, le=65535)
    model_dirs: tuple[Folder, ...] = ()
    """Folders of Hugging Face model folders, searched two levels deep; in the environment separated as PATH is."""
    hub: bool = True
    """Discover the hub's cache, and download a repo id on first use."""
    hub_endpoint: str = "https://huggingface.co"
    default_chat_model: str | None = None
    preset: Literal["16gb", "32gb", "64gb"] | None = None
    """Which models have the roles, and how they share the memory; by default chosen by the machine's memory."""
    resident: tuple[str, ...] | None = None
    """Ids, aliases or roles that are loaded at start and stay; by default those of the preset whose weights are here."""
    idle_unload_seconds: float = Field(600.0, ge=0)
    """A model unused for longer is unloaded; 0: never."""
    ttl_seconds: dict[str, Annotated[float, Field(ge=0)]] = {}
    """The same for single models by id; it wins over their cards. In the environment it is JSON."""
    minimum_residency_seconds: float = Field(15.0, ge=0)
    """A loaded model is not unloaded for another one before this: two that take turns must not spend their time loading."""
    memory_limit_bytes: int | None = Field(None, gt=0)
    """What all models together may hold; by default the preset's share of the machine."""
    memory_reserve_bytes: int | None = Field(None, ge=0)
    """What must stay free for other programs when a model is loaded; by default a sixteenth of the machine, 4 GB at most."""
    memory_wait_seconds: float = Field(30.0, ge=0)
    """How long a request waits for memory that others use before it gets a 503."""
    wired_limit: Literal["off", "auto"] | int = "off"
    """Memory that Metal keeps wired for each model: `off`, `auto` (its weights' size) or bytes. macOS 15 and later."""
    warm_spare: bool | None = None
    """Keep a worker process ready with everything imported; by default the preset decides."""
    load_timeout_seconds: float = Field(300.0, gt=0)
    worker_silence_seconds: float = Field(300.0, ge=0)
    """A worker that has requests and sends nothing for this long is ended; 0: never. It must be longer than the longest step: a
    chunk of a large model's prompt may take minutes."""
    max_body_bytes: int = Field(64 << 20, gt=0)
    max_audio_seconds: float = Field(3 * 3600.0, gt=0)
    max_waiting_requests: int = Field(256, gt=0)
    max_rows: int = Field(16, gt=0)
    """Sequences decoded together in one worker."""
    prefill_chunk_tokens: int = Field(256, gt=0)
    kv_ram_bytes: int | None = Field(None, ge=0)
    """KV of earlier prompts that each model keeps in memory; by default a sixteenth of the machine's, 4 GB at most. 0: no KV
    is kept, on disk neither."""
    kv_active_bytes: int | None = Field(None, gt=0)
    """KV of running requests, for each model. Beyond it new requests wait; when answers grow beyond it,
    the least urgent one is swapped out. By default a quarter of the machine's memory."""
    kv_disk_bytes: int = Field(20 << 30, ge=0)
    """The most KV of all models together under $DUET_HOME/kv. 0: it stays in memory."""
    kv_write_bytes_a_day: int = Field(40 << 30, ge=0)
    """The most KV written to the SSD a day: SSDs wear."""
    kv_free_bytes: int = Field(10 << 30, ge=0)
    """What KV must leave free on its disk."""
    kv_age_days: float = Field(30.0, gt=0)
    """KV that is unused for longer is removed."""
    kv_flush_seconds: float = Field(6.0, ge=0, le=60)
    """How long a model that is unloaded may take to write KV that is only in memory."""

    @field_validator("model_dirs", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return value

    @field_validator("resident", mode="before")
    @classmethod
    def _split_names(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("ttl_seconds", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("wired_limit", mode="after")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if isinstance(value, int) and value <= 0:
            raise ValueError("off, auto or a number of bytes above 0")
        return value


class RouterSettings(_Section):
    """Service 2."""

    host: str = "127.0.0.1"
    port: int = Field(18081, ge=0, le=65535)
    engine_url: str | None = None
    """Where the engine answers; by default on this machine at `engine.port`."""
    asr_model: str = "asr"
    """The engine's model for long and high-quality requests: an id, alias or role."""
    sensevoice_dir: Folder | None = None
    """Folder with model.int8.onnx (or model.onnx) and tokens.txt; default $DUET_HOME/models/sensevoice."""
    speaker_dir: Folder | None = None
    """Folder with seg.onnx and spk.onnx; default $DUET_HOME/models/speaker."""
    max_upload_bytes: int = Field(2 << 30, gt=0)
    max_audio_seconds: float = Field(6 * 3600.0, gt=0)
    engine_timeout_seconds: float = Field(300.0, gt=0)


class MeetingSettings(_Section):
    """The meeting pipeline."""

    workers: int = Field(1, ge=1, le=16)
    """Meetings processed at the same time."""
    max_queued: int = Field(100, ge=1)
    review_model: str = "reviewer"
    review_timeout_seconds: float = Field(120.0, gt=0)
    stage_attempts: int = Field(3, ge=1)


class Settings(_Section):
    """Everything that can be set. `home` comes from `DUET_HOME`, never from the file inside it."""

    home: Path
    embedded: bool = False
    """Offer the embedded demonstration models (`duet-tiny-*`) and use them for every role."""
    allowed_hosts: tuple[str, ...] = ()
    """Host header names accepted besides localhost, 127.0.0.1, ::1 and host.docker.internal."""
    allowed_origins: tuple[Origin, ...] = LOCAL_ORIGINS
    """Web pages that may call both services from a browser: origins, `:*` for any port, `*` for all pages."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    engine: EngineSettings = EngineSettings()
    router: RouterSettings = RouterSettings()
    meetings: MeetingSettings = MeetingSettings()

    @field_validator("allowed_hosts", "allowed_origins", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @property
    def engine_url(self) -> str:
        """The engine's base URL without /v1, as the router and the pipelines reach it."""
        return self.router.engine_url or _url(self.engine.host, self.engine.port)

    @property
    def router_url(self) -> str:
        return _url(self.router.host, self.router.port)


def _url(host: str, port: int) -> str:
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def load_settings(environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Read file and environment once. `overrides` (from the command line) win. Raises `SettingsError`."""
    environ = os.environ if environ is None else environ
    home = home_folder(environ)
    values = _merge(_merge(from_file(home / "config.toml"), from_environment(environ, _VARIABLES)), overrides)
    try:
        return Settings.model_validate({**values, "home": home})
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def origins(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each setting without its default value was set: dotted name -> variable or file. Reads file and environment again."""
    environ = os.environ if environ is None else environ
    path = home_folder(environ) / "config.toml"
    found = dict.fromkeys(_dotted(from_file(path)), str(path))
    found.update({".".join(place(name)): name for name in environ if name.upper() in _VARIABLES})
    return found


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """A sentence for each variable that looks like a setting of ours and is none."""
    return unknown(os.environ if environ is None else environ, _VARIABLES)


def _variables(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _variables(inner, f"{prefix}{name.upper()}__")
        elif name != "home":
            yield f"{prefix}{name.upper()}"


_VARIABLES = frozenset(_variables(Settings, PREFIX))


def hub_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that say where downloaded models are, for programs that start without our environment."""
    environ = os.environ if environ is None else environ
    return {name: environ[name] for name in HUB_NAMES if name in environ}


def to_environment(settings: Settings) -> dict[str, str]:
    """The same settings as environment variables, for child processes that call `load_settings` themselves."""
    found = {"DUET_HOME": str(settings.home)}

    def walk(prefix: str, section: BaseModel) -> None:
        for name in type(section).model_fields:
            value = getattr(section, name)
            key = f"{prefix}{name.upper()}"
            if isinstance(value, BaseModel):
                walk(f"{key}__", value)
            elif isinstance(value, dict):
                if value:
                    found[key] = json.dumps(value)
            elif isinstance(value, tuple):
                if value or type(section).model_fields[name].default != ():  # an empty one is not the default
                    found[key] = (os.pathsep if name == "model_dirs" else ",").join(str(item) for item in value)
            elif value is not None and key != "DUET_HOME":
                found[key] = str(value).lower() if isinstance(value, bool) else str(value)

    walk(PREFIX, settings)
    return found


def _dotted(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in values.items():
        names += _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [f"{prefix}{name}"]
    return names


def _merge(low: dict[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        variable = PREFIX + "__".join(str(part) for part in item["loc"]).upper()
        said = "there is no such setting" if item["type"] == "extra_forbidden" else item["msg"]
        lines.append(f"{name} ({variable}): {said}")
    return "; ".join(lines)
