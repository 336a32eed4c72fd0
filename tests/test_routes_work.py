"""What routes that transcribe have in common."""

from __future__ import annotations

import asyncio
import io

from sensevoice_service.pipeline import PipelineResult
from sensevoice_service.routes.services import OnProgress
from sensevoice_service.routes.trace import RequestTrace
from sensevoice_service.routes.work import transcribe_files
from sensevoice_service.types import CorruptAudio, DecodeOptions, Upload


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
        transcribe_files(pipeline, files, DecodeOptions(), RequestTrace("id"), at_once=2)
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


async def test_a_few_files_of_a_request_are_read_side_by_side_and_the_others_after_them() -> None:
    pipeline = Reading()
    files = [Upload(io.BytesIO(b"x"), f"{number}", 1) for number in range(5)]
    work = asyncio.create_task(
        transcribe_files(pipeline, files, DecodeOptions(), RequestTrace("id"), at_once=2)
    )
    for _ in range(20):
        await asyncio.sleep(0)
    assert pipeline.n_begun == 2
    work.cancel()
    await asyncio.wait([work])
    assert pipeline.n_begun == 2
    assert work.cancelled()


class Ready:
    """Hears nothing, at once, and notes how many files it had in hand."""

    def __init__(self) -> None:
        self.n_in_hand = self.n_most = 0

    async def transcribe(
        self, upload: Upload, options: DecodeOptions, on_progress: OnProgress | None = None
    ) -> PipelineResult:
        self.n_in_hand += 1
        self.n_most = max(self.n_most, self.n_in_hand)
        await asyncio.sleep(0)
        self.n_in_hand -= 1
        raise CorruptAudio(upload.name)


async def test_each_file_has_its_turn_and_its_own_result() -> None:
    pipeline = Ready()
    files = [Upload(io.BytesIO(b"x"), f"{number}", 1) for number in range(9)]
    results = await transcribe_files(
        pipeline, files, DecodeOptions(), RequestTrace("id"), at_once=3
    )
    assert [str(result) for result in results] == [file.name for file in files]
    assert pipeline.n_most == 3
