from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from config import load_settings
from sensevoice_service.cli.local import LocalRecogniser, jobs_for
from sensevoice_service.cores import LEAST_FILES_AT_ONCE, usable_cores
from sensevoice_service.service import LoadedModel
from sensevoice_service.status import ModelInfo
from sensevoice_service.types import CorruptAudio, DecodeOptions, ModelError

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
HELLO_S, NIHAO_S = 1.974, 2.452


@pytest.fixture(scope="module")
def hear() -> Iterator[LocalRecogniser]:
    n_threads = torch.get_num_threads()
    recogniser = LocalRecogniser(load_settings(MODEL="demo", SUBTITLE_LINES=1), DecodeOptions())
    yield recogniser
    recogniser.close()
    torch.set_num_threads(n_threads)


def test_files_are_heard_by_the_model_of_the_settings(hear: LocalRecogniser) -> None:
    found = hear(SAMPLES / "hello.wav")
    assert found.transcript.text == "hello world good morning"
    assert found.transcript.duration_s == pytest.approx(HELLO_S, abs=0.001)
    assert (found.model["name"], found.model["demo"]) == ("demo", True)
    assert found.rules.max_lines == 1
    assert hear.description == f"demo on cpu in {found.model['precision']}"


def test_several_threads_may_ask_at_once(hear: LocalRecogniser) -> None:
    paths = [SAMPLES / "hello.wav", SAMPLES / "nihao.wav"] * 4
    with ThreadPoolExecutor(len(paths)) as pool:
        texts = [found.transcript.text for found in pool.map(hear, paths)]
    assert texts == ["hello world good morning", "今天天气"] * 4


def test_audio_is_counted_as_it_goes_through_the_model(hear: LocalRecogniser) -> None:
    before_s = hear.hearing_s()
    hear(SAMPLES / "nihao.wav")
    assert hear.hearing_s() - before_s == pytest.approx(NIHAO_S, abs=0.1)


def test_errors_of_the_file_are_raised(hear: LocalRecogniser, tmp_path: Path) -> None:
    cut_off = tmp_path / "a.wav"
    cut_off.write_bytes((SAMPLES / "hello.wav").read_bytes()[:20_000])
    with pytest.raises(CorruptAudio):
        hear(cut_off)
    with pytest.raises(FileNotFoundError):
        hear(tmp_path / "gone.wav")


def test_a_model_that_is_not_there_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        LocalRecogniser(load_settings(MODEL=str(tmp_path)), DecodeOptions())


def test_there_are_files_enough_at_once_to_fill_batches(hear: LocalRecogniser) -> None:
    settings = load_settings(BATCH_SIZE=40)
    on_cpu = hear._loaded
    on_gpu: LoadedModel = replace(on_cpu, info=ModelInfo("x", False, "cuda:0", "bf16", "", 1))
    assert jobs_for(on_gpu, settings) == 80
    assert jobs_for(on_cpu, settings) == max(LEAST_FILES_AT_ONCE, 2 * usable_cores())
