"""Keeps Ray on one machine from being reached from others.

A replica of Ray Serve opens a gRPC port on every interface, for calls between deployments, and
unpickles what comes there. Ray's token guards it, and there is no setting for its address.
"""

from __future__ import annotations

import importlib
from typing import Any

LOOPBACK = "127.0.0.1"


def keep_to_loopback() -> None:
    """To be called in each of Ray's worker processes, before there is a replica in it."""
    replica: Any = importlib.import_module("ray.serve._private.replica")
    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> int:
        port: int = add_port(server, f"{LOOPBACK}:{address.rpartition(':')[2]}")
        return port

    replica.add_port_to_grpc_server = add_loopback_port
