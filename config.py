"""Settings of the service: built-in defaults < ``local_config.py`` < environment variables."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

LOCAL_CONFIG = Path(__file__).with_name("local_config.py")


class ConfigError(Exception):
    """A setting is unknown or has a wrong value; the message names it and what is allowed."""


class Settings(BaseSettings):
    """Every setting, its default and its meaning; the names are those of the environment."""

    model_config = SettingsConfigDict(extra="forbid", case_sensitive=True, frozen=True)

    HOST: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for every interface.")
    PORT: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")

    MODEL: str = Field(
        "auto",
        min_length=1,
        description="auto, demo, a model folder, or a hub id such as iic/SenseVoiceSmall.",
    )
    HUB: Literal["ms", "hf"] = Field("ms", description="ModelScope or Hugging Face.")
    DEVICE: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:\d+)?)$",
        description="auto (a GPU where there is one), cpu, cuda or cuda:N.",
    )
    QUANTIZE: Literal["auto", "off", "bf16", "int8"] = Field(
        "auto",
        description="auto (int8 on a CPU, bf16 on GPUs that have it), off (fp32), bf16, or int8.",
    )
    MODEL_WORKERS: int = Field(
        0,
        ge=0,
        le=256,
        description="Inference threads sharing the queue; 0 is one a core, or one on a GPU.",
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
    MAX_WAITING_REQUESTS: int = Field(100, ge=0, description="Requests that may wait for a slot.")
    QUEUE_TIMEOUT_SEC: float = Field(30.0, gt=0, description="Longest wait for a slot, then 503.")
    MEMORY_LIMIT_PERCENT: float = Field(
        90.0, gt=0, le=100, description="Memory use from which new requests are refused."
    )
    DECODE_THREADS: int = Field(
        0, ge=0, description="Threads that decode and chunk; 0 is one more than the cores."
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
        30.0, ge=1, le=120, description="Audio over this length is cut into chunks."
    )
    LARGE_FILE_CHUNK_SIZE_SEC: float = Field(
        15.0, ge=2, le=120, description="Longest chunk of a large file."
    )

    LOG_LEVEL: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe message that is logged."
    )
    LOG_FORMAT: Literal["text", "json"] = Field(
        "text", description="One line a message, either way."
    )
    LOG_FILENAMES: bool = Field(False, description="Log the names that clients give their files.")
    SHUTDOWN_TIMEOUT_SEC: int = Field(
        30, ge=0, description="How long accepted work may finish after SIGTERM."
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
    if slips := _misspelt(os.environ):
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


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            lines.append(f"{name}: no such setting; known: {', '.join(Settings.model_fields)}")
            continue
        field = Settings.model_fields.get(name)
        hint = f" ({field.description})" if field else ""
        lines.append(
            f"{name}: {problem['msg']}, got {problem['input']!r}{hint}" if name else problem["msg"]
        )
    return "wrong settings:\n  " + "\n  ".join(lines)
