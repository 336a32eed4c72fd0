"""``python -m fuzz.openapi [SECONDS]``: the API against its own description, by schemathesis.

The routes are the real ones behind a real port, and ask for a key; instead of the model a fake
hears bytes as words. The checks that are left out, and why, are in ``schemathesis.toml``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.http_service import house, serving

CHECKS = Path(__file__).with_name("schemathesis.toml")
KEY = "fuzz"


def main() -> int:
    longest_s = sys.argv[1] if len(sys.argv) > 1 else "60"
    app = house(API_KEYS=KEY).app()
    with tempfile.TemporaryDirectory() as folder, serving(app) as port:
        description = Path(folder, "openapi.json")
        description.write_text(json.dumps(_described(app.openapi())), "utf-8")
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            f"--config-file={CHECKS}",
            "run",
            f"--url=http://127.0.0.1:{port}",
            f"--header=Authorization: Bearer {KEY}",
            f"--max-time={longest_s}",
            "--request-timeout=10",
            "--no-color",
            str(description),
        ]
        return subprocess.run(command, check=False).returncode


def _described(description: dict[str, Any]) -> dict[str, Any]:
    """Without what OpenAPI cannot tell, or schemathesis not understand.

    OpenAPI 3.1 describes a stream as a whole, which schemathesis takes for that of one event. As
    many ``keys`` as files are found by luck alone: nearly all forms were refused for them.
    """
    for operations in description["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                answer.get("content", {}).get("text/event-stream", {}).pop("schema", None)
    body = description["paths"]["/transcribe"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    form["keys"] = {"type": "string", "maxLength": 0}
    return description


if __name__ == "__main__":
    sys.exit(main())
