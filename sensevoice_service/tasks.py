"""The end of tasks."""

from __future__ import annotations

import asyncio
from typing import Any


async def stop(*tasks: asyncio.Task[Any]) -> None:
    """Cancel those that still run, and wait for them; asyncio reports none of their errors then."""
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:  # to wait for what has ended would be another turn of the loop
        await asyncio.gather(*running, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.exception()
