from __future__ import annotations

import pytest

from config import load_settings
from deploy.ray_plan import HEADROOM, Plan, deployment_options, http_options, share_of
from sensevoice_service.admission import LONGEST_RETRY_AFTER_S

SETTINGS = load_settings(
    MAX_CONCURRENT_REQUESTS=8, MAX_WAITING_REQUESTS=20, SHUTDOWN_TIMEOUT_SEC=45
)


def test_the_bounds_of_ray_are_beyond_what_a_copy_lets_in() -> None:
    options = deployment_options(Plan(), SETTINGS)
    assert options["max_ongoing_requests"] == 8 + 20 + HEADROOM
    assert options["max_queued_requests"] == 8 + 20
    assert options["backpressure_config"] == {
        "status_code": 503,
        "retry_after_s": LONGEST_RETRY_AFTER_S,
    }


def test_copies_are_added_before_the_slots_of_those_there_are_run_out() -> None:
    scaling = deployment_options(Plan(min_replicas=2, max_replicas=9), SETTINGS)[
        "autoscaling_config"
    ]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 9)
    assert 1 <= scaling["target_ongoing_requests"] < 8


def test_accepted_work_has_as_long_as_without_ray() -> None:
    assert deployment_options(Plan(), SETTINGS)["graceful_shutdown_timeout_s"] == 45


def test_a_copy_gets_its_share_of_a_processor_and_of_a_gpu() -> None:
    actor = deployment_options(Plan(cpus=2, gpus=0.25), SETTINGS)["ray_actor_options"]
    assert actor == {"num_cpus": 2, "num_gpus": 0.25}


@pytest.mark.parametrize(
    ("plan", "threads"),
    [
        (Plan(cpus=0.5), (2, 1, 1)),
        (Plan(cpus=4), (5, 4, 1)),
        (Plan(cpus=4, gpus=1), (5, 0, 0)),
    ],
)
def test_a_copy_takes_the_threads_of_its_share(plan: Plan, threads: tuple[int, ...]) -> None:
    share = share_of(plan, SETTINGS)
    assert threads == (share.DECODE_THREADS, share.MODEL_WORKERS, share.INTRA_OP_THREADS)


def test_threads_that_are_set_stay() -> None:
    settings = load_settings(DECODE_THREADS=7, MODEL_WORKERS=2, INTRA_OP_THREADS=3)
    assert share_of(Plan(cpus=4), settings) == settings


def test_a_plan_is_read_from_the_words_of_a_command_line() -> None:
    words = {"min_replicas": "2", "max_replicas": "3", "gpus": "0.5"}
    assert Plan.model_validate(words) == Plan(min_replicas=2, max_replicas=3, gpus=0.5)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [({"replicas": "2"}, "replicas"), ({"min_replicas": "4"}, "must not exceed max_replicas")],
)
def test_a_plan_that_cannot_be_is_refused(words: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Plan.model_validate(words)


def test_ray_listens_where_the_settings_say() -> None:
    options = http_options(load_settings(HOST="0.0.0.0", PORT=8443))
    assert (options["host"], options["port"], options["ssl_certfile"]) == ("0.0.0.0", 8443, None)
