"""Who may use the routes that work: those with a key, each within a rate.

All is decided by the headers, before any of the body is received.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Hashable, Iterable
from hashlib import sha256

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from sensevoice_service.routes.paths import OPENAI, TRANSCRIBE, is_for
from sensevoice_service.routes.quota import Quota
from sensevoice_service.types import RateLimited, Unauthorized


class KeyRing:
    """Keys that are known, as their hashes alone."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._hashes = tuple(_hash(key.get_secret_value().encode()) for key in keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def holder(self, headers: Headers) -> bytes:
        """Who sent ``Authorization: Bearer`` or ``X-API-Key`` with a known key: its hash.

        Raises ``Unauthorized``. How long it takes says nothing of the keys.
        """
        given = _key_of(headers)
        if given is None:
            raise Unauthorized("an API key is needed, in the header Authorization: Bearer KEY")
        given_hash, is_known = _hash(given), False
        for known_hash in self._hashes:
            is_known |= hmac.compare_digest(known_hash, given_hash)
        if not is_known:
            raise Unauthorized("the API key is not known")
        return given_hash


def _key_of(headers: Headers) -> bytes | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip().encode("latin-1") or None


def _hash(key: bytes) -> bytes:
    return sha256(key).digest()


class Guard:
    """Keeps out those who lack a key, where there are keys, and those who come too often.

    Plain ASGI, so that a refusal is an early answer like any other. Raises ``Unauthorized`` and
    ``RateLimited``.
    """

    def __init__(self, app: ASGIApp, keys: KeyRing, quota: Quota | None) -> None:
        self._app = app
        self._keys = keys
        self._quota = quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and is_for(scope, TRANSCRIBE, OPENAI):
            holder = self._keys.holder(Headers(scope=scope)) if self._keys else None
            if self._quota is not None:
                _count(self._quota, holder or network_of(scope))
        await self._app(scope, receive, send)


def _count(quota: Quota, client: Hashable) -> None:
    retry_after_s = quota.take(client)
    if retry_after_s is not None:
        message = f"too many requests; the next may come in {retry_after_s} s"
        raise RateLimited(message, retry_after_s=retry_after_s)


def network_of(scope: Scope) -> str:
    """The client's address; of IPv6 the first 64 bits, the rest of which anyone may choose."""
    client = scope.get("client")
    host: str = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((address, 64), strict=False))
