from __future__ import annotations

import os
import pickle
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from bench.make_model import N_PARAMETERS
from bench.reference import FunAsr
from sensevoice_service import engine as engines
from sensevoice_service.ctc import best_path
from sensevoice_service.cuda_graphs import Bucket
from sensevoice_service.engine import (
    HEAD_FRAMES,
    Engine,
    EngineFiles,
    choose_device,
    choose_precision,
    load_engine,
    warm_up_shapes,
)
from sensevoice_service.types import (
    LANGUAGES,
    PROMPT_FRAMES,
    SAMPLE_RATE_HZ,
    Chunk,
    DeviceOutOfMemory,
    Hypothesis,
    ModelError,
    lfr_frames,
)
from tests.audio_files import voice
from tests.conftest import FULL_SIZE_FOLDER
from tests.models import CPU, Model, Samples, chunk_of, engine_of, files_of, noise, tone

# An arg-max over 25,055 random logits is close to call: bf16 turns a few, chance would meet none.
LIKE_FP32 = 0.8
DURATIONS_S = (0.3, 2.0, 0.02, 1.1, 4.0)


def chunks() -> list[Chunk]:
    """Noise, tones and voices of several lengths, each with options of its own."""
    makes = (noise, tone, lambda n_samples: voice(n_samples / SAMPLE_RATE_HZ))
    samples = [make(round(s * SAMPLE_RATE_HZ)) for make in makes for s in DURATIONS_S]
    return [
        chunk_of(one, LANGUAGES[i % len(LANGUAGES)], use_itn=i % 2 == 0)
        for i, one in enumerate(samples)
    ]


def ids_by_frame(hypothesis: Hypothesis, chunk: Chunk) -> NDArray[np.int32]:
    ids = np.zeros(chunk.n_frames, np.int32)
    ids[:PROMPT_FRAMES] = hypothesis.prompt_ids
    spans = (hypothesis.token_ids, hypothesis.first_frames, hypothesis.last_frames)
    for token_id, first, last in zip(*spans, strict=True):
        ids[PROMPT_FRAMES + first : PROMPT_FRAMES + last + 1] = token_id
    return ids


def agreement(one: Engine, other: Engine) -> float:
    """The share of frames on which two engines agree."""
    batch = chunks()
    pairs = zip(one(batch), other(batch), batch, strict=True)
    same = [ids_by_frame(a, chunk) == ids_by_frame(b, chunk) for a, b, chunk in pairs]
    return float(np.concatenate(same).mean())


def same(one: Hypothesis, other: Hypothesis) -> bool:
    return one.prompt_ids == other.prompt_ids and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("token_ids", "first_frames", "last_frames")
    )


@pytest.mark.parametrize("use_itn", [True, False])
@pytest.mark.parametrize("language", LANGUAGES)
def test_text_is_that_of_funasr(model: Model, funasr: FunAsr, language: str, use_itn: bool) -> None:
    waveforms: list[Samples] = [noise(8_000), tone(11_000), voice(1.2)]
    heard = model.engine([chunk_of(samples, language, use_itn) for samples in waveforms])
    for hypothesis, samples in zip(heard, waveforms, strict=True):
        first_frame = int(hypothesis.first_frames[0]) if len(hypothesis.first_frames) else 0
        text = model.vocabulary.raw(
            hypothesis.prompt_ids, hypothesis.token_ids, first_frame=first_frame
        )
        assert text == funasr.text(samples, language, use_itn)


@pytest.mark.skipif(not FULL_SIZE_FOLDER, reason="SENSEVOICE_FULL_SIZE_MODEL names no folder")
def test_parity_is_tested_at_the_published_size_too() -> None:
    """Makes the fixture ``model`` be that one as well."""
    path = Path(str(FULL_SIZE_FOLDER), "model.pt")
    state = torch.load(path, weights_only=True, mmap=True)
    assert sum(tensor.numel() for tensor in state.values()) == N_PARAMETERS


def test_a_batch_hears_in_every_row_what_the_row_alone_says(model: Model) -> None:
    batch = chunks()
    together = model.engine(batch)
    assert all(
        same(heard, model.engine([one])[0]) for heard, one in zip(together, batch, strict=True)
    )


def test_hypotheses_come_in_the_order_of_their_chunks(small_model: Model) -> None:
    batch = chunks()
    forwards, backwards = small_model.engine(batch), small_model.engine(batch[::-1])
    assert all(same(*pair) for pair in zip(forwards, backwards[::-1], strict=True))
    assert len({heard.token_ids.tobytes() for heard in forwards}) > len(batch) / 2


def test_frames_stay_within_their_chunk(small_model: Model) -> None:
    for heard, chunk in zip(small_model.engine(chunks()), chunks(), strict=True):
        assert len(heard.token_ids)
        assert heard.first_frames[0] >= 0
        assert heard.last_frames[-1] < lfr_frames(len(chunk.samples))
        assert (heard.first_frames[1:] > heard.last_frames[:-1]).all()


def test_slices_of_the_head_join_without_a_seam(
    small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = chunks()
    expected = small_model.engine(batch)
    assert sum(chunk.n_frames for chunk in batch) < HEAD_FRAMES
    monkeypatch.setattr(engines, "HEAD_FRAMES", 7)
    assert all(same(*pair) for pair in zip(small_model.engine(batch), expected, strict=True))


def test_the_logits_of_each_row_are_those_of_its_arg_max(model: Model) -> None:
    batch = chunks()[:6]
    rows = model.engine.read_logits(
        batch, lambda row, logits: (row, logits.dtype, logits.shape, logits.argmax(dim=-1))
    )
    assert [row for row, *_ in rows] == list(range(len(batch)))
    for chunk, (_, dtype, shape, ids) in zip(batch, rows, strict=True):
        assert dtype == torch.float32
        assert shape == (chunk.n_frames, model.vocabulary.size)
        assert same(best_path(ids.to(torch.int32).numpy()), model.engine([chunk])[0])


def test_threads_may_share_an_engine(small_model: Model) -> None:
    engine = engine_of(small_model.folder, small_model.vocabulary.size)
    batches = [[chunk_of(voice(duration_s))] for duration_s in (0.5, 40, 1, 2, 4, 35) * 2]
    start = threading.Barrier(4)

    def work(first: int) -> list[Hypothesis]:
        start.wait()
        return [heard for batch in batches[first::4] for heard in engine(batch)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(work, range(4)))
    for first, heard in enumerate(answers):
        expected = [small_model.engine(batch)[0] for batch in batches[first::4]]
        assert all(same(*pair) for pair in zip(heard, expected, strict=True))


def test_bf16_hears_nearly_what_fp32_hears(model: Model) -> None:
    engine = engine_of(model.folder, model.vocabulary.size, "bf16")
    assert engine.precision == "bf16"
    assert agreement(engine, model.engine) > LIKE_FP32


def test_bf16_rounds_the_weights_of_products_alone(small_model: Model) -> None:
    engine = engine_of(small_model.folder, small_model.vocabulary.size, "bf16")
    kinds: dict[torch.dtype, set[str]] = {}
    for module in engine.model.modules():
        for parameter in module.parameters(recurse=False):
            kinds.setdefault(parameter.dtype, set()).add(type(module).__name__)
    assert kinds == {
        torch.bfloat16: {"Linear", "Conv1d"},
        torch.float32: {"LayerNorm", "Norm", "Embedding"},
    }


def test_parameters_are_counted_whatever_the_precision(small_model: Model) -> None:
    state = torch.load(small_model.folder.checkpoint, weights_only=True)
    expected = sum(tensor.numel() for tensor in state.values())
    engine = engine_of(small_model.folder, small_model.vocabulary.size, "bf16")
    assert small_model.engine.n_parameters == engine.n_parameters == expected


def test_a_cpu_has_no_gpu_memory_to_tell_of(small_model: Model) -> None:
    assert small_model.engine.gpu_memory() is None


def load(model: Model, checkpoint: Path) -> Engine:
    return load_engine(files_of(model.folder, checkpoint), model.vocabulary.size, CPU, "fp32")


@pytest.fixture
def state(small_model: Model) -> dict[str, Any]:
    return dict(torch.load(small_model.folder.checkpoint, weights_only=True))


def test_a_checkpoint_of_funasrs_trainer_in_fp16_with_more_than_is_needed_is_taken(
    small_model: Model, state: dict[str, Any], tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in state.items()}
    extra = {"criterion_att.extra": torch.zeros(1)}
    torch.save({"state_dict": halves | extra, "epoch": 3}, tmp_path / "model.pt")
    assert agreement(load(small_model, tmp_path / "model.pt"), small_model.engine) > LIKE_FP32


def wrong_states(state: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """What a file may hold, and the words that its refusal must have."""
    bias = state["ctc.ctc_lo.bias"]
    without = {name: tensor for name, tensor in state.items() if name != "ctc.ctc_lo.bias"}
    return {
        "a missing key": (without, r"lacks 1 parameters, such as ctc\.ctc_lo\.bias"),
        "nothing": ({}, "lacks"),
        "a wrong shape": (state | {"ctc.ctc_lo.bias": bias[:-1]}, r"bias is \(25054,\), expected"),
        "no tensor": (state | {"ctc.ctc_lo.bias": 3}, "bias is int, expected"),
        "a list": (list(state.values()), "no parameters by name"),
        "a wrapped list": ({"state_dict": [1]}, "no parameters by name"),
    }


@pytest.mark.parametrize(
    "kind", ["a missing key", "nothing", "a wrong shape", "no tensor", "a list", "a wrapped list"]
)
def test_a_checkpoint_of_another_model_is_refused(
    small_model: Model, state: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    content, words = wrong_states(state)[kind]
    path = tmp_path / "model.pt"
    torch.save(content, path)
    with pytest.raises(ModelError, match=words) as caught:
        load(small_model, path)
    assert str(path) in str(caught.value)


class Payload:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_pickled_payload_is_refused_and_does_not_run(
    small_model: Model, state: dict[str, Any], tmp_path: Path
) -> None:
    path, trace = tmp_path / "model.pt", tmp_path / "trace"
    torch.save(state | {"hook": Payload(trace)}, path)
    with pytest.raises(ModelError, match="holds more than tensors"):
        load(small_model, path)
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(ModelError):
        load(small_model, path)
    assert not trace.exists()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_checkpoint_that_is_cut_off_is_damaged(
    small_model: Model, tmp_path: Path, share: float
) -> None:
    whole = small_model.folder.checkpoint.read_bytes()
    path = tmp_path / "model.pt"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ModelError, match="is damaged"):
        load(small_model, path)


def test_a_vocabulary_of_another_model_is_refused(small_model: Model) -> None:
    with pytest.raises(ModelError, match="expected"):
        load_engine(files_of(small_model.folder), 297, CPU, "fp32")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("encoder_conf", None),
        ("encoder_conf", "large"),
        ("encoder_conf", {"output_size": 64}),
        ("frontend_conf", {"n_mels": 80, "lfr_m": 7, "lfr_n": 3}),
    ],
    ids=["no encoder", "a word", "half an encoder", "other features"],
)
def test_a_configuration_that_is_not_understood_is_refused(
    small_model: Model, tmp_path: Path, part: str, value: Any
) -> None:
    files = files_of(small_model.folder)
    config = yaml.safe_load(files.config_yaml.read_text())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**config, part: value}))
    other = EngineFiles(tmp_path / "config.yaml", files.checkpoint, files.cmvn)
    with pytest.raises(ModelError, match="wrong configuration"):
        load_engine(other, small_model.vocabulary.size, CPU, "fp32")


@pytest.mark.parametrize("budget_frames", [100, 504, 1_024, 8_192])
@pytest.mark.parametrize("max_items", [1, 32])
def test_the_model_is_warmed_up_with_the_corners_of_what_fits(
    max_items: int, budget_frames: int
) -> None:
    shapes = warm_up_shapes(max_items, budget_frames, 30.0)
    assert {(1, 1.0), (1, 30.0)} <= set(shapes)
    for rows, duration_s in shapes:
        frames = PROMPT_FRAMES + lfr_frames(round(duration_s * SAMPLE_RATE_HZ))
        assert rows == 1 or rows * frames <= budget_frames
        assert rows <= max_items
    for duration_s in (1.0, 30.0):
        frames = PROMPT_FRAMES + lfr_frames(round(duration_s * SAMPLE_RATE_HZ))
        rows = max(rows for rows, seconds in shapes if seconds == duration_s)
        assert rows == max_items or (rows + 1) * frames > budget_frames


def test_a_warm_up_runs_batches_of_its_shapes(small_model: Model) -> None:
    seen: list[tuple[int, ...]] = []

    class Watched(Engine):
        def infer(self, batch: Any) -> list[Hypothesis]:
            seen.append(batch.lengths)
            return super().infer(batch)

    engine = small_model.engine
    watched = Watched(engine.model, engine.frontend, "fp32")
    watched.warm_up([(1, 0.5), (3, 1.0)])
    assert seen == [(lfr_frames(8_000),), (lfr_frames(16_000),) * 3]


def test_batches_go_through_the_graphs_of_a_gpu(
    small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = [chunk for chunk in chunks() if len(chunk.samples) < 2 * SAMPLE_RATE_HZ][:7]
    engine = engine_of(small_model.folder, small_model.vocabulary.size)
    replayed: list[int] = []

    def capture(run: Any) -> Any:
        def replay() -> torch.Tensor:
            ids: torch.Tensor = run()
            replayed.append(len(ids))
            return ids

        return replay

    monkeypatch.setattr(engines, "CudaCapture", lambda device: capture)
    engine.capture_graphs([Bucket(1, 64), Bucket(8, 64)])
    assert replayed == [8, 1]
    replayed.clear()
    expected = small_model.engine(batch)
    assert all(same(*pair) for pair in zip(engine(batch), expected, strict=True))
    assert same(engine(batch[:1])[0], expected[0])
    assert replayed == [8, 1]
    assert len(engine(chunks())) == len(chunks())
    assert replayed == [8, 1]


def test_a_device_out_of_memory_is_named_and_its_tensors_are_given_back(
    small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[torch.Tensor]] = []
    emptied: list[bool] = []

    def encode(*inputs: object) -> None:
        large = torch.zeros(10)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = engine_of(small_model.folder, small_model.vocabulary.size)
    batch = engine.frontend(chunks()[:1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[-1]() is None))
    with monkeypatch.context() as failing:
        failing.setattr(engine.model, "encode", encode)
        with pytest.raises(DeviceOutOfMemory, match="CUDA out of memory"):
            engine.infer(batch)
        with pytest.raises(DeviceOutOfMemory, match="CUDA out of memory"):
            engine(chunks()[:1])
        with pytest.raises(DeviceOutOfMemory, match="CUDA out of memory"):
            engine.read_logits(chunks()[:1], lambda _row, _logits: None)
    assert emptied == [True, True, True]
    assert same(engine.infer(batch)[0], small_model.engine.infer(batch)[0])


def test_features_that_do_not_fit_the_device_are_named_too(
    small_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def features(*waveforms: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    engine = engine_of(small_model.folder, small_model.vocabulary.size)
    monkeypatch.setattr(engine.frontend, "features", features)
    with pytest.raises(DeviceOutOfMemory):
        engine.read_logits(chunks()[:1], lambda _row, _logits: None)
    with pytest.raises(DeviceOutOfMemory):
        engine(chunks()[:1])


VOLTA, TURING, AMPERE, HOPPER = (7, 0), (7, 5), (8, 0), (9, 0)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends GPUs of these compute capabilities, and a torch for those from 7.5 on."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        def capability(device: torch.device) -> tuple[int, int]:
            return capabilities[device.index or 0]

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an NVIDIA")
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])

    return pretend


def test_auto_is_the_first_gpu_or_else_the_cpu(gpus: Any) -> None:
    gpus()
    assert choose_device("auto") == CPU
    gpus(HOPPER, HOPPER)
    assert choose_device("auto") == torch.device("cuda:0")
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize(("wanted", "number"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there_is_named(gpus: Any, wanted: str, number: int) -> None:
    gpus(*[HOPPER] * number)
    with pytest.raises(ModelError, match=f"DEVICE={wanted}: this machine has {number} usable GPUs"):
        choose_device(wanted)


def test_a_gpu_that_torch_has_no_code_for_is_passed_over(
    gpus: Any, caplog: pytest.LogCaptureFixture
) -> None:
    gpus(VOLTA, TURING)
    assert choose_device("auto") == torch.device("cuda:1")
    assert "cuda:0 (an NVIDIA) is too old for torch" in caplog.text
    gpus(VOLTA)
    assert choose_device("auto") == CPU
    with pytest.raises(ModelError, match=r"DEVICE=cuda:0: torch .* is not for GPUs this old"):
        choose_device("cuda:0")


@pytest.mark.parametrize(
    ("quantize", "device", "expected"),
    [
        ("auto", "cpu", "int8"),
        ("auto", "cuda", "bf16"),
        ("auto", "cuda:0", "bf16"),
        ("auto", "cuda:1", "fp32"),
        ("auto", "cuda:2", "bf16"),
        ("off", "cuda", "fp32"),
        ("off", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"),
        ("bf16", "cuda", "bf16"),
        ("bf16", "cuda:1", "bf16"),
        ("int8", "cpu", "int8"),
    ],
)
def test_precision_follows_the_setting_and_the_device(
    gpus: Any, quantize: str, device: str, expected: str
) -> None:
    gpus(HOPPER, TURING, AMPERE)
    assert choose_precision(quantize, torch.device(device)) == expected


def test_int8_on_a_gpu_is_refused() -> None:
    with pytest.raises(ModelError, match="QUANTIZE=int8 is for the CPU"):
        choose_precision("int8", torch.device("cuda:0"))
