from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import config
from config import ConfigError, Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = (ROOT / "local_config.py.example").read_text("utf-8")
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}

WriteLocal = Callable[[str], None]


@pytest.fixture(autouse=True)
def local_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteLocal:
    """No setting in the environment, and a ``local_config.py`` only where it is written."""
    path = tmp_path / "local_config.py"
    monkeypatch.setattr(config, "LOCAL_CONFIG", path)
    for name in DEFAULTS:
        monkeypatch.delenv(name, raising=False)

    def write(source: str) -> None:
        path.write_text(source, "utf-8")

    return write


def example_values() -> dict[str, Any]:
    """The commented settings of the example, as Python reads them once uncommented."""
    values: dict[str, Any] = {}
    exec("\n".join(re.findall(r"^# ([A-Z_]+ = .*)$", EXAMPLE, re.MULTILINE)), {}, values)
    return values


def problem(**overrides: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(**overrides)
    return str(caught.value)


def test_the_example_shows_each_setting_with_its_default_in_the_order_of_the_settings() -> None:
    assert list(example_values()) == list(DEFAULTS)
    assert example_values() == {**DEFAULTS, "API_KEYS": ""}


def test_the_example_says_of_each_setting_what_it_means() -> None:
    for name, field in Settings.model_fields.items():
        assert f"\n# {field.description}\n# {name} = " in EXAMPLE


def test_the_example_changes_nothing_as_it_stands(local_config: WriteLocal) -> None:
    local_config(EXAMPLE)
    assert load_settings().model_dump() == DEFAULTS


def test_the_example_is_taken_when_uncommented(local_config: WriteLocal) -> None:
    local_config(re.sub(r"^# (?=[A-Z_]+ = )", "", EXAMPLE, flags=re.MULTILINE))
    assert load_settings().model_dump() == DEFAULTS


def test_without_a_file_or_an_environment_the_defaults_hold() -> None:
    assert load_settings().model_dump() == DEFAULTS


def test_the_local_file_wins_over_the_defaults(local_config: WriteLocal) -> None:
    local_config("PORT = 8001\nMODEL = 'demo'\n")
    settings = load_settings()
    assert (settings.PORT, settings.MODEL) == (8001, "demo")
    assert settings.HOST == "127.0.0.1"


def test_the_environment_wins_over_the_local_file(
    local_config: WriteLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_config("PORT = 8001\nMODEL = 'demo'\n")
    monkeypatch.setenv("PORT", "8002")
    settings = load_settings()
    assert (settings.PORT, settings.MODEL) == (8002, "demo")


def test_the_local_file_may_compute_and_import(local_config: WriteLocal) -> None:
    local_config("import os\n_minutes = 5\nMAX_AUDIO_SEC = _minutes * 60\n")
    assert load_settings().MAX_AUDIO_SEC == 300


def test_an_unknown_name_in_the_local_file_is_told_with_those_that_are_known(
    local_config: WriteLocal,
) -> None:
    local_config("PROT = 8001\n")
    message = problem()
    assert "PROT: no such setting" in message
    assert all(name in message for name in DEFAULTS)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("PORT", "70000", "65535"),
        ("PORT", "http", "integer"),
        ("HUB", "elsewhere", "'ms' or 'hf'"),
        ("DEVICE", "gpu", "cpu, cuda or cuda:N"),
        ("DEVICE", "cuda:0,cpu", "several: cuda:0,cuda:1"),
        ("DEVICE", "cuda:0,cuda:0", "named twice"),
        ("QUANTIZE", "int4", "'auto', 'off', 'bf16' or 'int8'"),
        ("MODEL", "", "at least 1 character"),
        ("HOST", "", "at least 1 character"),
        ("DECODE_TIMEOUT_SEC", "1e10", "less than or equal to 86400"),
        ("DECODE_MEMORY_MB", "100000000000000", "less than or equal to 1048576"),
        ("DRAIN_SEC", "1e10", "less than or equal to 86400"),
        ("SHUTDOWN_TIMEOUT_SEC", "10000000000", "less than or equal to 86400"),
        ("MEMORY_LIMIT_PERCENT", "0", "greater than 0"),
        ("MEMORY_LIMIT_PERCENT", "101", "less than or equal to 100"),
        ("MAX_FILES", "0", "greater than or equal to 1"),
        ("LOG_LEVEL", "info", "'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("LOG_FILENAMES", "perhaps", "boolean"),
        ("RATE_LIMIT", "60", "such as 60/minute"),
        ("RATE_LIMIT", "0/minute", "such as 60/minute"),
        ("RATE_LIMIT", "5/week", "such as 60/minute"),
        ("CORS_ORIGINS", "https://a.example, b.example", "https://example.com"),
        ("CORS_ORIGINS", "https://a.example/", "https://example.com"),
        ("API_KEYS_FILE", "/nonexistent/keys", "no such file"),
        ("API_KEYS_FILE", "/", "no such file"),
        ("TLS_CERTFILE", "/nonexistent/cert.pem", "no such file"),
        ("SUBTITLE_MAX_SEC", "inf", "finite"),
        ("DECODE_TIMEOUT_SEC", "inf", "finite"),
        ("LARGE_FILE_SIZE_MB", "inf", "finite"),
        ("DRAIN_SEC", "nan", "finite"),
    ],
)
def test_a_wrong_value_is_told_with_its_setting_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    message = problem()
    assert message.startswith("wrong settings:\n")
    assert f"{name}: " in message
    assert f"got {value!r}" in message
    assert allowed in message


def test_a_wrong_value_in_the_local_file_is_told_in_the_same_way(local_config: WriteLocal) -> None:
    local_config("BATCH_SIZE = 0\n")
    assert "BATCH_SIZE: Input should be greater than or equal to 1, got 0" in problem()


def test_each_wrong_setting_has_a_line(
    local_config: WriteLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    local_config("NONSENSE = 1\n")
    monkeypatch.setenv("PORT", "-1")
    monkeypatch.setenv("HUB", "x")
    _, *lines = problem().splitlines()
    assert sorted(line.split(":")[0].strip() for line in lines) == ["HUB", "NONSENSE", "PORT"]


def test_a_chunk_may_not_be_longer_than_what_stays_whole() -> None:
    message = problem(LARGE_FILE_DURATION_SEC=10, LARGE_FILE_CHUNK_SIZE_SEC=11)
    assert "LARGE_FILE_CHUNK_SIZE_SEC must not exceed LARGE_FILE_DURATION_SEC" in message


def test_subtitles_may_not_have_to_stay_longer_than_they_may() -> None:
    message = problem(SUBTITLE_MIN_SEC=7.5)
    assert "SUBTITLE_MIN_SEC must not exceed SUBTITLE_MAX_SEC" in message


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("true", "auto"),
        ("True", "auto"),
        ("1", "auto"),
        ("false", "off"),
        ("0", "off"),
        ("int8", "int8"),
    ],
)
def test_quantize_in_the_environment_may_be_a_switch(
    word: str, meaning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTIZE", word)
    assert load_settings().model_dump()["QUANTIZE"] == meaning


@pytest.mark.parametrize(("value", "meaning"), [(True, "auto"), (False, "off")])
def test_quantize_in_the_local_file_may_be_a_switch(
    value: bool, meaning: str, local_config: WriteLocal
) -> None:
    local_config(f"QUANTIZE = {value}\n")
    assert load_settings().model_dump()["QUANTIZE"] == meaning


def test_keys_come_from_both_settings(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_bytes("\ufeffone\r\n# nobody's\n two # of a friend\n\nth#ree\n".encode())
    settings = load_settings(API_KEYS="four, five,", API_KEYS_FILE=str(path))
    keys = [key.get_secret_value() for key in settings.api_keys()]
    assert keys == ["four", "five", "one", "two", "th#ree"]
    assert load_settings().api_keys() == ()


@pytest.mark.parametrize("value", ["", " ", ",", " , ,", "a b", "ключ", "tab\tbed"])
def test_a_slip_in_the_keys_does_not_let_everyone_in(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_KEYS", value)
    message = problem()
    assert "key" in message
    assert f"got {value!r}" not in message


def test_a_file_of_no_keys_does_not_let_everyone_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# none yet\n")
    assert "has no key" in problem(API_KEYS_FILE=str(path))
    path.write_bytes(b"\xff\xfe\x00")
    assert "API_KEYS_FILE cannot be read" in problem(API_KEYS_FILE=str(path))


def test_a_file_of_keys_that_is_emptied_later_does_not_let_everyone_in(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("one\n")
    settings = load_settings(API_KEYS_FILE=str(path))
    path.write_text("")
    with pytest.raises(ValueError, match="has no key"):
        settings.api_keys()
    path.write_text("one two\n")
    with pytest.raises(ValueError, match="without spaces"):
        settings.api_keys()


def test_a_file_of_keys_without_a_name_does_not_let_everyone_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("API_KEYS_FILE", "")
    assert "API_KEYS_FILE is set, but gives no key" in problem()


def test_a_wrong_value_that_is_secret_is_not_shown(local_config: WriteLocal) -> None:
    local_config("API_KEYS = ['s3cret']\n")
    assert "API_KEYS: " in problem()
    assert "s3cret" not in problem()


def test_origins_are_listed() -> None:
    assert load_settings().cors_origins() == ()
    settings = load_settings(CORS_ORIGINS="https://a.example, http://localhost:3000,")
    assert settings.cors_origins() == ("https://a.example", "http://localhost:3000")


def test_a_certificate_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("no certificate")
    assert "TLS_KEYFILE needs TLS_CERTFILE" in problem(TLS_KEYFILE=str(path))
    assert "TLS_CERTFILE or TLS_KEYFILE cannot be used" in problem(TLS_CERTFILE=str(path))


def test_the_names_that_openssl_gives_its_files_are_no_misspelt_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/cert.pem")
    assert load_settings().TLS_CERTFILE == ""


def test_settings_cannot_be_changed_later() -> None:
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.PORT = 1


def test_the_service_ends_with_2_and_one_clear_message_where_a_setting_is_wrong() -> None:
    result = subprocess.run(
        [sys.executable, "api.py"],
        cwd=ROOT,
        env={**os.environ, "PORT": "70000"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert result.stdout == ""
    title, line = result.stderr.splitlines()
    assert title == "wrong settings:"
    assert line.startswith("  PORT: ")
    assert "65535" in line


def test_a_broken_local_config_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "local_config.py"
    broken.write_text("PORT = = 1\n")
    monkeypatch.setattr(config, "LOCAL_CONFIG", broken)
    with pytest.raises(config.ConfigError, match=r"local_config\.py cannot be read: SyntaxError"):
        config.load_settings()


def test_a_misspelt_environment_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_CONCURENT_REQUESTS", "5")
    with pytest.raises(ConfigError, match="did you mean MAX_CONCURRENT_REQUESTS"):
        load_settings()


def test_other_programs_may_have_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOSTNAME", "MODEL_NAME", "PORTS", "LOG_DIR", "BATCH", "MAX_JOBS"):
        monkeypatch.setenv(name, "x")
    assert load_settings().PORT == 8000
