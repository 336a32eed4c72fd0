"""``python -m tests.ray_uploads [--haproxy]``: what four large uploads at once cost Ray's proxy."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil

from tests.ray_house import House, HouseEnded, free_port, house

N_UPLOADS = 4
UPLOAD_BYTES = 115_000_000  # an hour of speech as WAV
PATIENT_S = 120.0
POLL_S = 0.05


@dataclass(frozen=True)
class Cost:
    """Memory of all that is between a client and a copy, in PSS; the answers' statuses.

    PSS counts a page that two processes share once: Ray starts HAProxy anew in a fork of a process
    of some 90 MB, and while that fork is no HAProxy yet its resident memory is the parent's again.
    """

    idle_bytes: int
    peak_bytes: int
    statuses: list[int]


def haproxy() -> dict[str, str]:
    """The environment in which HAProxy is the proxy, on ports that are free."""
    names = ("FALLBACK_PROXY_HTTP", "HAPROXY_METRICS", "HAPROXY_STATS")
    return {
        **{f"RAY_SERVE_{name}_PORT": str(free_port()) for name in names},
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    }


def cost_behind_haproxy(attempts: int = 2) -> Cost:
    """Anew where it does not start: a port that was free may be another's by then."""
    with house(**haproxy()) as rays:
        try:
            rays.deploy(2, "fixed:0")
        except HouseEnded:
            if attempts == 1:
                raise
        else:
            assert rays.processes("haproxy")
            return cost_of_uploads(rays)
    return cost_behind_haproxy(attempts - 1)


def cost_of_uploads(rays: House) -> Cost:
    idle_bytes = peak_bytes = _proxies_bytes(rays)
    with ThreadPoolExecutor(N_UPLOADS) as clients:
        uploads = [clients.submit(_upload, rays.url) for _ in range(N_UPLOADS)]
        while not all(upload.done() for upload in uploads):
            peak_bytes = max(peak_bytes, _proxies_bytes(rays))
            threading.Event().wait(POLL_S)
    return Cost(idle_bytes, peak_bytes, [upload.result() for upload in uploads])


def _proxies_bytes(rays: House) -> int:
    """HAProxy starts itself anew when the copies change, so the processes are looked up."""
    total = 0
    for process in rays.processes("ray::Proxy", "ray::HAProxy", "haproxy"):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().pss
    return total


def _upload(url: str) -> int:
    """Of what is no audio, so that the proxy's part is all there is to do."""
    start, end = b'--edge\r\nContent-Disposition: form-data; name="files"; ', b"\r\n--edge--\r\n"
    start += b'filename="a.wav"\r\n\r\n'
    piece = bytes(100_000)

    def body() -> Iterator[bytes]:
        yield start
        for _ in range(UPLOAD_BYTES // len(piece)):
            yield piece
        yield end

    headers = {
        "Content-Type": "multipart/form-data; boundary=edge",
        "Content-Length": str(len(start) + UPLOAD_BYTES + len(end)),
    }
    answer = httpx.post(
        f"{url}/transcribe", content=body(), headers=headers, timeout=PATIENT_S, trust_env=False
    )
    return answer.status_code


def main() -> None:
    environment = haproxy() if "--haproxy" in sys.argv[1:] else {}
    with house(**environment) as rays:
        rays.deploy(2, "fixed:0")
        cost = cost_of_uploads(rays)
    growth_mb = (cost.peak_bytes - cost.idle_bytes) / 1e6
    print(f"idle {cost.idle_bytes / 1e6:.1f} MB, {growth_mb:+.1f} MB, answers {cost.statuses}")


if __name__ == "__main__":
    main()
