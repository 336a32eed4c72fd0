from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from sensevoice_service.admission import LONGEST_RETRY_AFTER_S
from tests.fixed_time import pid_of
from tests.http_service import multipart
from tests.ray_house import House, house
from tests.ray_load import Load, per_second, silence
from tests.ray_uploads import cost_behind_haproxy

pytestmark = pytest.mark.ray

SAMPLE = Path(__file__).resolve().parents[1] / "samples" / "hello.wav"
PATIENT_S = 60.0  # only a hang takes that long
BACK_S = 30.0  # what a copy's death may take until there is another
POLL_S = 0.1


@pytest.fixture(scope="module")
def rays() -> Iterator[House]:
    with house() as built:
        yield built


def until(is_so: Callable[[], bool], timeout_s: float = PATIENT_S) -> None:
    deadline_s, pause = time.monotonic() + timeout_s, threading.Event()
    while not is_so():
        assert time.monotonic() < deadline_s
        pause.wait(POLL_S)


def requests_in(rays: House) -> dict[str, int]:
    body = httpx.get(f"{rays.url}/health", timeout=PATIENT_S, trust_env=False).json()
    return dict(body["requests"])


def transcribe(rays: House, wav: bytes) -> httpx.Response:
    files = {"files": ("a.wav", wav)}
    return httpx.post(f"{rays.url}/transcribe", files=files, timeout=PATIENT_S, trust_env=False)


def copy_of(answer: httpx.Response) -> int:
    assert answer.status_code == 200
    return pid_of(answer.json()["model"]["name"])


def rate_of(rays: House, replicas: int) -> float:
    # Long beside what a request takes of a busy processor, and always more that wait.
    rays.deploy(replicas, "fixed:0.5")
    with Load(rays.url, n_clients=12) as load:
        load.wait_for(4 * replicas)
        until(lambda: len(load.pids()) == replicas)
        warm = len(load.outcomes)
        load.wait_for(12 * replicas)
        counted = load.outcomes[warm:]
    assert not load.failures()
    return per_second(counted)


def test_two_copies_serve_twice_as_much_as_one(rays: House) -> None:
    assert rate_of(rays, replicas=2) >= 1.8 * rate_of(rays, replicas=1)


def test_of_a_copy_that_is_killed_only_the_requests_in_hand_fail_and_another_takes_its_place(
    rays: House,
) -> None:
    rays.deploy(2, "fixed:0.05")
    with Load(rays.url, n_clients=8) as load:
        until(lambda: len(load.pids()) == 2)
        victim, survivor = load.pids()
        killed_s = time.monotonic()
        psutil.Process(victim).kill()
        until(lambda: len(load.pids()) == 3, BACK_S)
        (successor,) = load.pids() - {victim, survivor}
        load.wait_for(4, pid=successor)
        load.wait_for(4, pid=survivor)
    assert all(failure.began_s < killed_s for failure in load.failures())
    assert len(load.failures()) < load.n_clients


def test_a_redeployment_under_load_fails_no_request(rays: House) -> None:
    rays.deploy(2, "fixed:0.05")
    with Load(rays.url, n_clients=6) as load:
        until(lambda: len(load.pids()) == 2)
        old = load.pids()
        rays.deploy(2, "fixed:0.04")
        until(lambda: len(load.pids() - old) == 2)
        load.wait_for(12)
    assert not load.failures()
    until(lambda: not any(psutil.pid_exists(pid) for pid in old))


def test_a_copy_that_is_to_go_finishes_what_it_has_accepted(rays: House) -> None:
    rays.deploy(1, "fixed:0")
    (old,) = {copy_of(transcribe(rays, silence(1.0)))}
    rays.deploy(1, "fixed:5")
    with ThreadPoolExecutor(1) as client:
        accepted = client.submit(transcribe, rays, silence(1.0))
        until(lambda: requests_in(rays)["active"] == 1)
        rays.deploy(1, "fixed:0.01")
        going = copy_of(accepted.result(PATIENT_S))
    came = copy_of(transcribe(rays, silence(1.0)))
    assert len({old, going, came}) == 3
    until(lambda: not psutil.pid_exists(going))


def test_a_full_copy_says_when_to_come_back_and_a_hang_up_frees_its_slot(rays: House) -> None:
    rays.deploy(1, "fixed:3600", MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=0)
    body, headers = multipart(silence(1.0))
    lines = [f"{name}: {value}" for name, value in headers.items()]
    lines = ["POST /transcribe HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines]
    with socket.create_connection(("127.0.0.1", rays.port)) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        until(lambda: requests_in(rays)["active"] == 1)
        refused = transcribe(rays, silence(1.0))
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "overloaded"
    assert 1 <= int(refused.headers["retry-after"]) <= LONGEST_RETRY_AFTER_S
    assert refused.headers.get_list("x-request-id") == [refused.json()["error"]["request_id"]]
    until(lambda: requests_in(rays)["active"] == 0)


async def test_ray_itself_refuses_what_is_beyond_its_bounds(rays: House) -> None:
    # One in the copy and two in front of it. While a copy turns one away Ray counts one less, so
    # the fourth may still get in; twelve do not.
    rays.deploy(1, "fixed:3600", MAX_CONCURRENT_REQUESTS=1, MAX_WAITING_REQUESTS=1, headroom=-1)
    files = {"files": ("a.wav", silence(1.0))}
    async with httpx.AsyncClient(base_url=rays.url, timeout=None, trust_env=False) as client:
        asked = [asyncio.create_task(client.post("/transcribe", files=files)) for _ in range(12)]
        refused, let_in = await asyncio.wait(
            asked, timeout=PATIENT_S, return_when=asyncio.FIRST_COMPLETED
        )
        for task in let_in:
            task.cancel()
        await asyncio.wait(let_in)
    answers = [task.result() for task in refused]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["retry-after"] for answer in answers} == {str(LONGEST_RETRY_AFTER_S)}


def test_behind_haproxy_large_uploads_pass_the_proxy_without_filling_it() -> None:
    cost = cost_behind_haproxy()
    assert set(cost.statuses) == {415}
    assert cost.peak_bytes - cost.idle_bytes < 64 * 2**20


def test_on_one_machine_it_is_for_that_machine_alone_and_ends_at_ctrl_c() -> None:
    with house("deploy.ray_local", MODEL="demo", HOST="127.0.0.1") as rays:
        rays.hear("serving on")
        answer = transcribe(rays, SAMPLE.read_bytes())
        listening = {
            connection.laddr.ip.removeprefix("::ffff:")
            for process in rays.processes()
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        }
        (raylet,) = rays.processes("raylet")
        reports = raylet.environ()["RAY_USAGE_STATS_ENABLED"]
        assert rays.interrupt() == 0
        until(lambda: not rays.processes())
    assert "hello" in answer.json()["results"][0].lower()
    assert listening == {"127.0.0.1"}
    assert reports == "0"
