"""Settings of the service: built-in defaults < ``local_config.py`` < environment variables."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

LOCAL_CONFIG = Path(__file__).with_name("local_config.py")

_SECRETS = {"API_KEYS"}
_ORIGIN = re.compile(r"\*|https?://[^/\s@?#]+")
_COMMENT = re.compile(r"(^|\s)#.*")  # within a key, # is one of its characters
_API_KEY = re.compile(r"[!-~]+")  # what a header can carry

DAY_S = 86_400


class ConfigError(Exception):
    """A setting is unknown or has a wrong value; the message names it and what is allowed."""


class Settings(BaseSettings):
    """Every setting, its default and its meaning; the names are those of the environment."""

    model_config = SettingsConfigDict(
        extra="forbid", case_sensitive=True, frozen=True, allow_inf_nan=False
    )

    HOST: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 for every interface.",
    )
    PORT: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    HEADER_TIMEOUT: float = Field(
        10.0, gt=0, description="Seconds a client may take for the headers of a request."
    )
    TLS_CERTFILE: str = Field("", description="Certificate chain, PEM; with it HTTPS is spoken.")
    TLS_KEYFILE: str = Field(
        "", description="Key of the certificate, PEM, where it is not in TLS_CERTFILE."
    )

    API_KEYS: SecretStr = Field(
        SecretStr(""),
        description="Keys that open /transcribe and /v1, comma-separated; none lets everyone in.",
    )
    API_KEYS_FILE: str = Field(
        "", description="File with more of them, one a line; # starts a comment."
    )
    RATE_LIMIT: str = Field(
        "",
        pattern=r"^([1-9]\d*/(second|minute|hour|day))?$",
        description="Requests of one key or address, such as 60/minute, then 429; none: no limit.",
    )
    CORS_ORIGINS: str = Field(
        "",
        description="Web pages' origins that may call it, comma-separated, or *; none: no other's.",
    )
    METRICS: bool = Field(True, description="Whether there is /metrics.")
    DOCS: bool = Field(True, description="Whether there are /docs, /redoc and /openapi.json.")
    PAGE: bool = Field(True, description="Whether there is the page for people at /.")

    MODEL: str = Field(
        "auto",
        min_length=1,
        description="auto, demo, a model folder, or a hub id such as iic/SenseVoiceSmall.",
    )
    HUB: Literal["ms", "hf"] = Field("ms", description="ModelScope or Hugging Face.")
    DEVICE: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda|cuda:\d+(,cuda:\d+)*)$",
        description="auto (a GPU where there is one), cpu, cuda or cuda:N; several: cuda:0,cuda:1.",
    )
    QUANTIZE: Literal["auto", "off", "bf16", "int8"] = Field(
        "auto",
        description="auto (int8 on a CPU, bf16 on GPUs that have it), off (fp32), bf16, or int8.",
    )
    MODEL_WORKERS: int = Field(
        0,
        ge=0,
        le=256,
        description="Inference threads of each device; 0 is one a core, or one on a GPU.",
    )
    INTRA_OP_THREADS: int = Field(
        0, ge=0, description="CPU threads of one inference; 0 shares the cores among the workers."
    )

    BATCH_SIZE: int = Field(32, ge=1, le=1024, description="Most chunks in one batch.")
    BATCH_FRAMES: int = Field(
        0,
        ge=0,
        description="Most padded 60 ms frames in one batch; 0 chooses by device.",
    )
    BATCH_WAIT_MS: float = Field(
        20.0, ge=0, description="Longest wait for company while the service is busy."
    )
    CHUNKS_IN_FLIGHT: int = Field(
        16, ge=1, description="Most chunks of one file that wait or run at once."
    )

    MAX_CONCURRENT_REQUESTS: int = Field(20, ge=1, description="Requests worked on at once.")
    MAX_WAITING_REQUESTS: int = Field(60, ge=0, description="Requests that may wait for a slot.")
    QUEUE_TIMEOUT_SEC: float = Field(30.0, gt=0, description="Longest wait for a slot, then 503.")
    REQUEST_TIMEOUT_SEC: float = Field(
        3600.0, ge=0, description="Longest time from a request to its answer, then 504; 0 is none."
    )
    MEMORY_LIMIT_PERCENT: float = Field(
        90.0, gt=0, le=100, description="Memory use from which new requests are refused."
    )
    DECODE_THREADS: int = Field(
        0, ge=0, description="Threads that decode and chunk; 0 is one more than the cores."
    )
    DECODE_ISOLATION: Literal["process", "thread"] = Field(
        "process", description="Decode uploads in processes of their own, or in the service's."
    )
    DECODE_TIMEOUT_SEC: float = Field(
        30.0,
        gt=0,
        le=DAY_S,
        description="Longest that a decoder process may hang or lag, then 504.",
    )
    DECODE_MEMORY_MB: int = Field(
        512, ge=16, le=2**20, description="MiB that a decoder process may take beyond its own size."
    )

    MAX_FILES: int = Field(32, ge=1, description="Most files in one request.")
    MAX_UPLOAD_MB: int = Field(512, ge=1, description="Largest request body, MiB.")
    UPLOAD_MEMORY_MB: int = Field(
        16, ge=0, description="MiB of a file kept in memory before it spills to a temporary file."
    )
    MAX_AUDIO_SEC: int = Field(6 * 3600, ge=1, description="Longest audio of one file.")
    LARGE_FILE_SIZE_MB: float = Field(
        16.0, gt=0, description="A file over this many MiB is cut into chunks."
    )
    LARGE_FILE_DURATION_SEC: float = Field(
        20.0, ge=1, le=120, description="Audio over this length is cut into chunks."
    )
    LARGE_FILE_CHUNK_SIZE_SEC: float = Field(
        15.0, ge=2, le=120, description="Longest chunk of a large file."
    )

    SUBTITLE_LINE_LATIN: int = Field(
        42, ge=1, le=1000, description="Most Latin characters in a line of subtitles."
    )
    SUBTITLE_LINE_CJK: int = Field(
        21, ge=1, le=1000, description="Most Chinese, Japanese or Korean characters in one."
    )
    SUBTITLE_LINES: int = Field(2, ge=1, le=10, description="Most lines shown at once.")
    SUBTITLE_MIN_SEC: float = Field(
        0.8, ge=0, description="Shortest time that subtitles are shown, where there is room."
    )
    SUBTITLE_MAX_SEC: float = Field(7.0, gt=0, description="Longest time that subtitles are shown.")

    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe message that is logged."
    )
    LOG_FORMAT: Literal["text", "json"] = Field(
        "text", description="One line a message, either way."
    )
    LOG_FILENAMES: bool = Field(False, description="Log the names that clients give their files.")
    DRAIN_SEC: float = Field(
        5.0,
        ge=0,
        le=DAY_S,
        description="How long after SIGTERM it listens on and answers new work with 503.",
    )
    SHUTDOWN_TIMEOUT_SEC: int = Field(
        30,
        ge=0,
        le=DAY_S,
        description="How long after SIGTERM accepted work may finish; the rest gets 503.",
    )

    @field_validator("QUANTIZE", mode="before")
    @classmethod
    def _quantize_as_a_switch(cls, value: Any) -> Any:
        """``true`` and ``false`` are understood too: the best for the device, or none."""
        words = {"true": "auto", "1": "auto", "false": "off", "0": "off"}
        return words.get(str(value).lower(), value)

    @model_validator(mode="after")
    def _chunks_fit(self) -> Settings:
        if self.LARGE_FILE_CHUNK_SIZE_SEC > self.LARGE_FILE_DURATION_SEC:
            raise ValueError("LARGE_FILE_CHUNK_SIZE_SEC must not exceed LARGE_FILE_DURATION_SEC")
        return self

    @model_validator(mode="after")
    def _subtitle_times_fit(self) -> Settings:
        if self.SUBTITLE_MIN_SEC > self.SUBTITLE_MAX_SEC:
            raise ValueError("SUBTITLE_MIN_SEC must not exceed SUBTITLE_MAX_SEC")
        return self

    @field_validator("DEVICE")
    @classmethod
    def _devices_differ(cls, value: str) -> str:
        if len(devices := value.split(",")) > len(set(devices)):
            raise ValueError("a device is named twice")
        return value

    @field_validator("TLS_CERTFILE", "TLS_KEYFILE", "API_KEYS_FILE")
    @classmethod
    def _file_is_there(cls, value: str) -> str:
        if value and not (Path(value).is_file() and os.access(value, os.R_OK)):
            raise ValueError("there is no such file, or it may not be read")
        return value

    @field_validator("CORS_ORIGINS")
    @classmethod
    def _origins_are_origins(cls, value: str) -> str:
        if wrong := [origin for origin in _listed(value) if not _ORIGIN.fullmatch(origin)]:
            raise ValueError(f"{wrong[0]!r} is no origin such as https://example.com")
        return value

    @model_validator(mode="after")
    def _certificate_goes_with_its_key(self) -> Settings:
        if self.TLS_KEYFILE and not self.TLS_CERTFILE:
            raise ValueError("TLS_KEYFILE needs TLS_CERTFILE")
        if self.TLS_CERTFILE:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            try:
                # No password: one would be asked for on a terminal that nobody may look at.
                context.load_cert_chain(self.TLS_CERTFILE, self.TLS_KEYFILE or None, lambda: "")
            except (ssl.SSLError, OSError) as error:
                raise ValueError(f"TLS_CERTFILE or TLS_KEYFILE cannot be used: {error}") from None
        return self

    @model_validator(mode="after")
    def _keys_are_keys(self) -> Settings:
        self.api_keys()
        return self

    def api_keys(self) -> tuple[SecretStr, ...]:
        """Of ``API_KEYS`` and ``API_KEYS_FILE``, which is read anew; none where neither is given.

        Raises ``ValueError``: a slip in them must not let everyone in, nor a file that has been
        emptied since, or is another on the machine that serves.
        """
        given = _listed(self.API_KEYS.get_secret_value()) + _keys_in(self.API_KEYS_FILE)
        if not given and (self.API_KEYS.get_secret_value() or self.API_KEYS_FILE):
            raise ValueError("API_KEYS or API_KEYS_FILE is given, but has no key")
        if not all(_API_KEY.fullmatch(key) for key in given):
            raise ValueError("keys are made of ASCII letters, digits and marks, without spaces")
        return tuple(SecretStr(key) for key in given)

    def cors_origins(self) -> tuple[str, ...]:
        return tuple(_listed(self.CORS_ORIGINS))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        local = InitSettingsSource(settings_cls, init_kwargs=_local_values(LOCAL_CONFIG))
        return init_settings, env_settings, local


def _listed(value: str) -> list[str]:
    return [name for part in value.split(",") if (name := part.strip())]


def _keys_in(file: str) -> list[str]:
    """None of no file. Raises ``ValueError``."""
    if not file:
        return []
    try:
        lines = Path(file).read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        raise ValueError("API_KEYS_FILE cannot be read") from None
    return [key for line in lines if (key := _COMMENT.sub("", line).strip())]


def _local_values(path: Path) -> dict[str, Any]:
    """The upper-case names of a Python file, or nothing where there is no such file."""
    if not path.exists():
        return {}
    spec = importlib.util.spec_from_file_location("local_config", path)
    if spec is None or spec.loader is None:
        return {}
    module = ModuleType("local_config")
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"{path.name} cannot be read: {error!r}") from error
    return {name: value for name, value in vars(module).items() if name.isupper()}


def load_settings(**overrides: Any) -> Settings:
    """Read all sources. Raises ``ConfigError`` with a line for each setting that is wrong.

    The environment is shared with other programs, so of its unknown names only those that look
    like a slip of the pen are refused.
    """
    if slips := [*_misspelt(os.environ), *_blank_keys(os.environ)]:
        raise ConfigError("wrong settings:\n  " + "\n  ".join(slips))
    try:
        return Settings(**overrides)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None


def _misspelt(names: Iterable[str]) -> list[str]:
    known = list(Settings.model_fields)
    slips = []
    for name in names:
        # Short names are near to too many others.
        if "_" in name and name not in known:
            meant = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            slips += [f"{name}: no such setting; did you mean {close}?" for close in meant]
    return slips


def _blank_keys(variables: Mapping[str, str]) -> list[str]:
    """A secret that could not be made or read is empty: it must not let everyone in."""
    names = [name for name in ("API_KEYS", "API_KEYS_FILE") if variables.get(name) == ""]
    return [f"{name} is set, but gives no key; unset it to let everyone in" for name in names]


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; known: {', '.join(Settings.model_fields)}")
            continue
        field = Settings.model_fields.get(name)
        hint = f" ({field.description})" if field else ""
        got = "" if name in _SECRETS else f", got {problem['input']!r}"
        said = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{name}: {said}{got}{hint}" if name else said)
    return "wrong settings:\n  " + "\n  ".join(lines)
