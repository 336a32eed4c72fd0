"""What a full service says to those who come: the application is not asked.

A refusal through all of the application costs half a millisecond of a core. Where requests come at
many times the rate that can be served, these cores are missing for those who were let in.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from sensevoice_service.admission import Admission
from sensevoice_service.routes.errors import by_itself, error_response
from sensevoice_service.routes.headers import header_of
from sensevoice_service.routes.keys import KeyRing
from sensevoice_service.routes.ledger import Ledger
from sensevoice_service.routes.paths import is_for_work
from sensevoice_service.routes.trace import RequestTrace, attach, request_id_of
from sensevoice_service.types import Unauthorized


class Door:
    """Asked with the scope of a request, before any of its body is looked at."""

    def __init__(self, admission: Admission, keys: KeyRing, ledger: Ledger) -> None:
        self._admission = admission
        self._keys = keys
        self._ledger = ledger

    def __call__(self, scope: Scope) -> Response | None:
        """The answer to one who is turned away; ``None`` where the application is to answer.

        That is also where a browser's page or a wrong key has to be told more than that.
        """
        if not is_for_work(scope) or header_of(scope, b"origin"):
            return None
        refusal = self._admission.refusal()
        if refusal is None or not self._knows(scope):
            return None
        began_s = time.perf_counter()
        trace = RequestTrace(request_id_of(scope), shed=refusal.want)
        attach(scope, trace)
        error = self._admission.overloaded(refusal)
        trace.outcome = error.code
        response = by_itself(error_response(error, scope), trace.request_id)
        self._ledger.enter(scope, response.status_code, trace, time.perf_counter() - began_s)
        return response

    def _knows(self, scope: Scope) -> bool:
        try:
            return not self._keys or bool(self._keys.holder(Headers(scope=scope)))
        except Unauthorized:
            return False
