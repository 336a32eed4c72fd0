"""Calls that share the cores: their threads, seen by name, come and go as other calls do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sensevoice_service.callers import Threads
from sensevoice_service.encoder import EncoderConfig, SenseVoice
from sensevoice_service.frontend import FeatureBatch
from sensevoice_service.native_engine import NativeEngine
from sensevoice_service.native_library import AMX, AVX2, PLAIN, VNNI, Target
from sensevoice_service.types import Chunk, Hypothesis
from tests.engines import features_of, native_library, same
from tests.models import Model

DEEP = EncoderConfig(64, 80, 64, 2, 64, 200, 2, 3)  # as many places for a team to change
# By the target: so many frames that a call takes about a second.
FRAMES = {PLAIN: 100, AVX2: 800, VNNI: 1_600, AMX: 1_600}
ALL_CORES = 3
ATTEMPTS = 20
PATIENCE_S = 60.0
WORKED_S = 0.05  # of all threads together
Answer = Future[list[Hypothesis]]


@pytest.fixture(scope="module", params=list(FRAMES), ids=lambda target: target.name)
def target(request: pytest.FixtureRequest) -> Target:
    target: Target = request.param
    native_library(target)
    return target


def make_engine(target: Target, demo: Model, n_cores: int) -> NativeEngine:
    torch.manual_seed(0)
    model = SenseVoice(DEEP).eval()
    threads = Threads(narrow=1, wide=n_cores)
    return NativeEngine(model, demo.engine.frontend, threads, native_library(target))


@pytest.fixture(scope="module")
def engine(target: Target, demo: Model) -> NativeEngine:
    return make_engine(target, demo, ALL_CORES)


@pytest.fixture
def long(target: Target) -> FeatureBatch:
    return features_of([FRAMES[target]], DEEP.input_size)


@pytest.fixture
def short(target: Target) -> FeatureBatch:
    return features_of([FRAMES[target] // 3], DEEP.input_size)


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def cores_of_helpers() -> list[set[int]]:
    """Those on which each thread of a team may be, beside the callers themselves."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if (thread / "comm").read_text() == "encoder\n":
                found.append(os.sched_getaffinity(int(thread.name)))
    return found


def n_helpers() -> int:
    return len(cores_of_helpers())


def comes_while(running: list[Answer], is_so: Callable[[], bool]) -> bool:
    """Whether it is so before any of ``running`` has ended."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        if any(answer.done() for answer in running):
            return False
        assert time.monotonic() < deadline_s, "it never came"
    return not any(answer.done() for answer in running)


def gets_all_cores(call: Answer) -> bool:
    return comes_while([call], lambda: n_helpers() == ALL_CORES - 1)


def is_seen(happens: Callable[[], bool]) -> bool:
    """A busy machine may miss it, but what is seen once has been there."""
    return any(happens() for _ in range(ATTEMPTS))


def test_a_lone_call_has_all_cores_shares_them_with_a_second_and_has_them_back(
    engine: NativeEngine, long: FeatureBatch, short: FeatureBatch, callers: ThreadPoolExecutor
) -> None:
    def happens() -> bool:
        first = callers.submit(engine.infer, long)
        has_all = gets_all_cores(first)
        second = callers.submit(engine.infer, short)
        has_shared = comes_while([first, second], lambda: n_helpers() == 0)
        second.result()
        has_all_again = gets_all_cores(first)
        first.result()
        assert n_helpers() == 0
        return has_all and has_shared and has_all_again

    assert is_seen(happens)


@pytest.mark.parametrize("n_cores", [1, None], ids=["a core alone", "all cores"])
def test_its_threads_may_be_moved_to_each_of_its_cores_and_to_no_other(
    engine: NativeEngine, long: FeatureBatch, callers: ThreadPoolExecutor, n_cores: int | None
) -> None:
    """They begin on a core each."""
    cores = set(sorted(os.sched_getaffinity(0))[:n_cores])

    def infer_on_them() -> list[Hypothesis]:
        os.sched_setaffinity(0, cores)  # of this thread
        return engine.infer(long)

    def happens() -> bool:
        call = callers.submit(infer_on_them)
        wanted = [cores] * (ALL_CORES - 1)
        return comes_while([call], lambda: cores_of_helpers() == wanted)

    assert is_seen(happens)


def test_a_call_that_is_followed_has_its_share_until_the_follower_has_come_and_gone(
    engine: NativeEngine, long: FeatureBatch, short: FeatureBatch, callers: ThreadPoolExecutor
) -> None:
    def happens() -> bool:
        first = callers.submit(engine.infer, replace(long, has_followers=True))
        begun_s = time.process_time()
        comes_while([first], lambda: time.process_time() - begun_s > WORKED_S)
        assert n_helpers() == 0
        callers.submit(engine.infer, short).result()
        has_all = gets_all_cores(first)
        first.result()
        return has_all

    assert is_seen(happens)


def test_a_follower_may_be_the_sooner_through_the_front_end(
    engine: NativeEngine, long: FeatureBatch, short: FeatureBatch, callers: ThreadPoolExecutor
) -> None:
    """The followed call takes its turn, then the follower begins, then the followed call."""

    def happens() -> bool:
        follower: list[Answer] = []

        def front_end(chunks: Sequence[Chunk]) -> FeatureBatch:
            follower.append(callers.submit(engine.infer, short))
            comes_while(follower, lambda: n_helpers() > 0)
            return replace(long, has_followers=True)

        quick = copy(engine)
        quick.frontend = front_end  # type: ignore[assignment]
        first = callers.submit(quick, [])
        comes_while([first], lambda: bool(follower) and follower[0].done())
        has_all = gets_all_cores(first)
        first.result()
        return has_all

    assert is_seen(happens)


@pytest.mark.parametrize("n_cores", [ALL_CORES, 4], ids=["to one", "to two"])
def test_a_team_that_changes_gives_the_bits_that_one_thread_gives(
    target: Target,
    demo: Model,
    n_cores: int,
    long: FeatureBatch,
    short: FeatureBatch,
    callers: ThreadPoolExecutor,
) -> None:
    """A second call leaves it a half of the cores, rounded down."""
    engine = make_engine(target, demo, n_cores)
    followed = replace(long, has_followers=True)
    (wanted,) = engine.infer(followed)
    (other,) = engine.infer(replace(short, has_followers=True))

    def happens() -> bool:
        changing = callers.submit(engine.infer, long)
        n_seen = set()
        while not changing.done():
            answer = callers.submit(engine.infer, short)
            while not answer.done():
                n_seen.add(n_helpers())
            assert same(answer.result()[0], other)
        assert same(changing.result()[0], wanted)
        return len(n_seen) > 1

    assert is_seen(happens)
