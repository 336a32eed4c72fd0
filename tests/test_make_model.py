from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import yaml

from bench.make_model import BPE_MODEL_NAME, CONFIG, TAG_IDS, main, make_model
from bench.peers.audio import read_voices, speech
from sensevoice_service.ctc import BLANK_ID
from sensevoice_service.engine import EngineFiles, load_engine
from sensevoice_service.model_store import open_folder
from sensevoice_service.types import PROMPT_FRAMES, Chunk, DecodeOptions

PUBLISHED = os.environ.get("SENSEVOICE_PUBLISHED_FILES")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model(folder, small=True)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / BPE_MODEL_NAME))


def test_it_is_a_model_folder_by_the_services_own_check(folder: Path) -> None:
    assert open_folder(folder).bpe_model == folder / BPE_MODEL_NAME


def test_the_full_size_module_has_the_parameters_of_the_published_one() -> None:
    from funasr.models.sense_voice.model import SenseVoiceSmall

    with torch.device("meta"):
        module = SenseVoiceSmall(
            encoder=CONFIG["encoder"],
            encoder_conf=CONFIG["encoder_conf"],
            input_size=560,
            vocab_size=25_055,
        )
    assert sum(tensor.numel() for tensor in module.state_dict().values()) == 233_999_167


@pytest.mark.skipif(not PUBLISHED, reason="SENSEVOICE_PUBLISHED_FILES names no folder")
def test_the_configuration_is_the_published_one() -> None:
    assert yaml.safe_load(Path(str(PUBLISHED), "config.yaml").read_text()) == CONFIG


def test_the_same_seed_gives_the_same_files_and_another_seed_others(
    folder: Path, tmp_path: Path
) -> None:
    assert main([str(tmp_path / "same"), "--small"]) == 0
    assert main([str(tmp_path / "other"), "--small", "--seed", "1"]) == 0

    def weights(where: Path) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = torch.load(where / "model.pt", weights_only=True)
        return state

    def digest(where: Path) -> str:
        return hashlib.sha256((where / "am.mvn").read_bytes()).hexdigest()

    mine, same, other = (
        weights(place) for place in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert mine.keys() == same.keys() == other.keys()
    assert all(torch.equal(mine[key], same[key]) for key in mine)
    assert not torch.equal(mine["embed.weight"], other["embed.weight"])
    assert digest(folder) == digest(tmp_path / "same") != digest(tmp_path / "other")


def test_making_a_model_leaves_torchs_own_seed_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    make_model(tmp_path, small=True)
    assert torch.equal(torch.rand(3), expected)


def test_blank_is_as_frequent_as_is_wanted(tmp_path: Path) -> None:
    make_model(tmp_path, small=True, blank_share=0.75)
    files = EngineFiles(tmp_path / "config.yaml", tmp_path / "model.pt", tmp_path / "am.mvn")
    engine = load_engine(files, 25_055, torch.device("cpu"), "fp32")
    clips = [speech(read_voices(), 5.0, number) for number in range(4)]
    batch = engine.frontend([Chunk(clip, 0, 0, DecodeOptions()) for clip in clips])
    share = float((engine.run(batch)[:, PROMPT_FRAMES:] == BLANK_ID).float().mean())
    assert share == pytest.approx(0.75, abs=0.02)


def test_the_vocabulary_has_the_tags_at_their_published_ids(tokenizer: Any) -> None:
    assert tokenizer.get_piece_size() == 25_055
    assert (tokenizer.unk_id(), tokenizer.bos_id(), tokenizer.eos_id()) == (0, 1, 2)
    for name, token_id in TAG_IDS.items():
        assert tokenizer.id_to_piece(token_id) == f"<|{name}|>"


def test_tags_and_text_survive_decoding(tokenizer: Any) -> None:
    ids = [TAG_IDS[name] for name in ("zh", "NEUTRAL", "Speech", "withitn")]
    text = tokenizer.decode([*ids, *tokenizer.encode("你好 hello")])
    assert text == "<|zh|><|NEUTRAL|><|Speech|><|withitn|> 你好 hello"


def test_cmvn_is_read_by_funasr_with_plausible_values(folder: Path) -> None:
    from funasr.frontends.wav_frontend import load_cmvn

    shift, scale = load_cmvn(str(folder / "am.mvn")).numpy()
    assert shift.shape == scale.shape == (560,)
    assert -16 < shift.min() < shift.max() < -7
    assert 0.1 < scale.min() < scale.max() < 0.3
    assert np.array_equal(shift[:80], shift[480:])


def test_configuration_json_names_files_that_exist(folder: Path) -> None:
    metas = json.loads((folder / "configuration.json").read_text())["file_path_metas"]
    names = [
        metas["init_param"],
        metas["config"],
        metas["tokenizer_conf"]["bpemodel"],
        metas["frontend_conf"]["cmvn_file"],
    ]
    assert all((folder / name).is_file() for name in names)


@pytest.mark.filterwarnings("default")
def test_funasr_loads_it_and_hears_several_different_tokens(folder: Path, tokenizer: Any) -> None:
    from funasr import AutoModel

    recogniser = AutoModel(model=str(folder), disable_update=True, disable_pbar=True, device="cpu")
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000).astype(np.float32)
    text = recogniser.generate(samples, language="auto", use_itn=True)[0]["text"]
    assert len(set(tokenizer.encode(text))) > 5
