"""onnxruntime's engine against torch's, on the demo model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sensevoice_service.callers import Threads
from sensevoice_service.check_utterance import check_chunk
from sensevoice_service.likeness import require_likeness
from sensevoice_service.onnx_engine import OnnxEngine, choose_int8
from sensevoice_service.onnx_graph import Int8
from sensevoice_service.types import Chunk, ModelError
from tests.engines import (
    require_logits_of_the_arg_max,
    require_that_a_long_chunk_is_heard,
    require_that_threads_share,
    row_of,
    same,
    some_chunks,
)
from tests.models import Model

SHARED = Threads(narrow=1, wide=2)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", params=["fp32", "int8"])
def engine(request: pytest.FixtureRequest, demo: Model) -> OnnxEngine:
    int8 = choose_int8() if request.param == "int8" else None
    return OnnxEngine(demo.engine.model, demo.engine.frontend, int8, SHARED)


@pytest.fixture(scope="module")
def chunks() -> list[Chunk]:
    return some_chunks()


def test_onnxruntime_keeps_no_records_of_its_use(tmp_path: Path) -> None:
    """Unless told otherwise it opens a database in the user's cache, to report from."""
    import_it = "import sensevoice_service.onnx_engine"
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-c", import_it], env=home, cwd=ROOT, check=True)
    assert "onnxruntime.db" not in [path.name for path in tmp_path.rglob("*")]


def test_it_hears_what_torch_hears(engine: OnnxEngine, demo: Model) -> None:
    heard = engine([check_chunk()])[0]
    wanted = demo.engine([check_chunk()])[0]
    assert heard.token_ids.tolist() == wanted.token_ids.tolist()
    assert len(heard.token_ids) == 4
    assert heard.prompt_ids == wanted.prompt_ids
    assert np.abs(heard.first_frames - wanted.first_frames).max() <= 1


def test_fp32_is_torchs_fp32(demo: Model, chunks: list[Chunk]) -> None:
    engine = OnnxEngine(demo.engine.model, demo.engine.frontend, None, SHARED)
    assert engine.precision == "fp32"
    for ours, theirs in zip(engine(chunks), demo.engine(chunks), strict=True):
        assert same(ours, theirs)


def test_a_row_of_a_batch_is_exactly_the_row_alone(engine: OnnxEngine, chunks: list[Chunk]) -> None:
    together = engine(chunks)
    alone = [engine([chunk])[0] for chunk in chunks]
    assert len(together) == len(chunks)
    assert all(same(a, b) for a, b in zip(together, alone, strict=True))
    batch = engine.frontend(chunks)
    for index, row in enumerate(engine.hidden(batch)):
        np.testing.assert_array_equal(row, engine.hidden(row_of(batch, index))[0])


def test_the_logits_of_each_row_are_those_of_its_arg_max(
    engine: OnnxEngine, demo: Model, chunks: list[Chunk]
) -> None:
    require_logits_of_the_arg_max(engine, demo.vocabulary.size, chunks)


def test_threads_share_it(engine: OnnxEngine, chunks: list[Chunk]) -> None:
    require_that_threads_share(engine, chunks)


def test_a_lone_caller_has_the_wide_session_and_two_have_narrow_ones(demo: Model) -> None:
    engine = OnnxEngine(demo.engine.model, demo.engine.frontend, None, SHARED)
    batch = engine.frontend([check_chunk()])
    with engine._session(batch) as first, engine._session(batch) as second:
        assert first is engine._wide
        assert second is engine._narrow
    with engine._session(batch) as alone:
        assert alone is engine._wide
    assert engine._wide.get_session_options().intra_op_num_threads == 2
    assert engine._narrow.get_session_options().intra_op_num_threads == 1


def test_a_chunk_that_others_will_follow_leaves_room_for_them(demo: Model) -> None:
    engine = OnnxEngine(demo.engine.model, demo.engine.frontend, None, SHARED)
    followed = replace(check_chunk(), has_followers=True)
    with engine._session(engine.frontend([followed])) as alone:
        assert alone is engine._narrow
    with engine._session(engine.frontend([check_chunk()])) as last:
        assert last is engine._wide
    assert same(engine([followed])[0], engine([check_chunk()])[0])


def test_audio_longer_than_all_before_gets_its_positions(demo: Model, engine: OnnxEngine) -> None:
    require_that_a_long_chunk_is_heard(engine, demo)


@pytest.mark.parametrize(
    ("flags", "limit"),
    [
        ("flags : fpu sse4_2 avx2 avx512f avx512_vnni", 127),
        ("flags : avx2 avx_vnni", 127),
        ("flags : avx2 amx_int8", 127),
        ("flags : sse4_2 avx avx2 fma", 63),
        ("Features : fp asimd asimddp", 127),
    ],
)
def test_the_range_of_weights_follows_the_cpu(tmp_path: Path, flags: str, limit: int) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(flags + "\n")
    assert choose_int8(cpuinfo) == Int8(limit)


def test_without_cpuinfo_the_range_is_whole(tmp_path: Path) -> None:
    assert choose_int8(tmp_path / "none") == Int8(127)


@pytest.fixture
def rough(demo: Model) -> OnnxEngine:
    """Weights of −1, 0 and 1: what is left of a model whose products overflow."""
    return OnnxEngine(demo.engine.model, demo.engine.frontend, Int8(limit=1), SHARED)


def test_an_engine_that_hears_something_else_is_refused(demo: Model, rough: OnnxEngine) -> None:
    with pytest.raises(ModelError, match="int8 on this CPU does not agree with fp32"):
        require_likeness(demo.engine, rough, check_chunk())


def test_an_engine_that_hears_the_same_is_let_through(demo: Model, engine: OnnxEngine) -> None:
    assert require_likeness(demo.engine, engine, check_chunk()) > 0.98
