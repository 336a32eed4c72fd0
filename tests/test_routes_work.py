"""What routes that transcribe have in common."""

from __future__ import annotations

import asyncio
import io

from sensevoice_service.pipeline import PipelineResult
from sensevoice_service.routes.services import OnProgress
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.routes.work import transcribe_files
from sensevoice_service.types import DecodeOptions, Upload


class Reading:
    """A pipeline that reads on for a while after it was cancelled, as a decoder's step does."""

    def __init__(self) -> None:
        self.n_begun = 0
        self.let_go = asyncio.Event()
        self.ended: list[str] = []

    async def transcribe(
        self, upload: Upload, options: DecodeOptions, on_progress: OnProgress | None = None
    ) -> PipelineResult:
        self.n_begun += 1
        try:
            await asyncio.Event().wait()
            raise AssertionError("unreachable")
        finally:
            if upload.name == "slow":
                await self.let_go.wait()
            self.ended.append(upload.name)


async def test_a_request_that_is_cancelled_ends_when_no_file_is_read_any_more() -> None:
    pipeline = Reading()
    files = [Upload(io.BytesIO(b"x"), name, 1) for name in ("quick", "slow")]
    work = asyncio.create_task(
        transcribe_files(pipeline, files, DecodeOptions(), RequestTrace("id"))
    )
    while pipeline.n_begun < 2:
        await asyncio.sleep(0)
    work.cancel()
    while not pipeline.ended:
        await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    assert not work.done()
    pipeline.let_go.set()
    await asyncio.wait([work])
    assert work.cancelled()
    assert pipeline.ended == ["quick", "slow"]
