"""``python -m tests.openapi_file`` writes ``openapi.json``: the API as it is with the defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config import Settings
from tests.http_service import house

FILE = Path(__file__).resolve().parents[1] / "openapi.json"


def document(**settings: Any) -> dict[str, Any]:
    """Of the defaults, whatever this machine's own settings are, but for ``settings``."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    return house(**{**defaults, **settings}).app().openapi()


def text() -> str:
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
    print(f"written: {FILE.name}")
