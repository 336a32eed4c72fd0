"""``python -m sensevoice_service.probe``: whether the service beside it is well, by exit status.

It asks at the address of the settings, in HTTPS where they name a certificate. Overloaded is well:
a restart would only lose the work in hand.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
from typing import TYPE_CHECKING

from config import ConfigError, load_settings

if TYPE_CHECKING:
    from config import Settings

WELL = ("healthy", "overloaded")
TIMEOUT_S = 4.0

_ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def is_well(settings: Settings) -> bool:
    connection = _connect(settings)
    try:
        connection.request("GET", "/health")
        return json.load(connection.getresponse())["status"] in WELL
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return False
    finally:
        connection.close()


def _connect(settings: Settings) -> http.client.HTTPConnection:
    host = _ANY_ADDRESS.get(settings.HOST, settings.HOST)
    if not settings.TLS_CERTFILE:
        return http.client.HTTPConnection(host, settings.PORT, timeout=TIMEOUT_S)
    # The certificate names the service as its clients do, and nothing secret is said.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(host, settings.PORT, timeout=TIMEOUT_S, context=context)


def main() -> int:
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if is_well(settings) else 1


if __name__ == "__main__":
    sys.exit(main())
