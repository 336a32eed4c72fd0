"""``python -m deploy.ray_local``: two copies of the service on a Ray of this machine's own."""

from __future__ import annotations

import os
import secrets
import signal
import sys
import threading
from pathlib import Path

# Ray reads these when it is imported. Without the first it reports its use to its makers; the
# second, for all its name, makes it listen on the loopback instead of every interface; without the
# last it writes a token of its own into the home directory.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())

import ray
from ray import serve

from api import EXIT_NO_MODEL, EXIT_USAGE
from config import ConfigError, Settings, load_settings
from deploy import ray_loopback
from deploy.ray_plan import Plan, http_options
from deploy.ray_serve import NAME, application

ROOT = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = 100 * 2**20  # pieces of uploads on their way to a replica, nothing else


def start_ray(settings: Settings, cpus: float, *, log: bool = True) -> None:
    """No dashboard, a small object store; ``cpus`` is what Ray may give away, whatever there is."""
    ray.init(
        address="local",  # also where RAY_ADDRESS or a `ray start` names another
        num_cpus=max(1, round(cpus)),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=log,
        runtime_env={
            "env_vars": {"PYTHONPATH": str(ROOT)},
            "worker_process_setup_hook": f"{ray_loopback.__name__}.keep_to_loopback",
        },
    )
    serve.start(http_options=http_options(settings))


def stop_ray() -> None:
    serve.shutdown()
    ray.shutdown()


def main() -> int:
    """Serve until a signal. Exit status as of ``api.main``."""
    try:
        settings = load_settings()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    stopped = threading.Event()
    plan = Plan(min_replicas=2, max_replicas=2)
    start_ray(settings, cpus=plan.max_replicas * plan.cpus)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.run(application(plan, settings), name=NAME, route_prefix="/")
        print(f"serving on http://{settings.HOST}:{settings.PORT}", flush=True)
        stopped.wait()
    except RuntimeError as error:  # no copy could be started
        print(error, file=sys.stderr)
        return EXIT_NO_MODEL
    finally:
        stop_ray()
    return 0


if __name__ == "__main__":
    sys.exit(main())
