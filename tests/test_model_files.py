from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from sensevoice_service.model_files import file_problems, locate
from tests.forbidden import forbidden


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("model: SenseVoiceSmall\n")
    (tmp_path / "am.mvn").write_text("<Nnet>")
    (tmp_path / "any.bpe.model").write_bytes(b"pieces")
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"weights" * 1000)
    return tmp_path


def problems(folder: Path) -> list[str]:
    files, problems = locate(folder)
    return problems + file_problems(files, hashed_size_bytes=1)


def name_parts(folder: Path, **metas: object) -> None:
    (folder / "configuration.json").write_text(json.dumps({"file_path_metas": metas}))


def test_a_whole_folder_has_no_problems(folder: Path) -> None:
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["config.yaml", "am.mvn", "model.pt"])
def test_a_missing_or_empty_part_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")
    assert problems(folder) == [f"{name} is empty"]
    (folder / name).unlink()
    assert problems(folder) == [f"{name} is missing"]


def test_a_part_that_may_not_be_read_is_named(folder: Path) -> None:
    files, _ = locate(folder)
    with forbidden(files.checkpoint):
        assert problems(folder) == ["model.pt cannot be read: Permission denied"]


def test_a_missing_tokenizer_is_named_as_published(folder: Path) -> None:
    (folder / "any.bpe.model").unlink()
    assert problems(folder) == ["chn_jpn_yue_eng_ko_spectok.bpe.model is missing"]


def test_every_missing_part_is_listed(tmp_path: Path) -> None:
    assert len(problems(tmp_path)) == 4


def test_a_checkpoint_that_is_cut_off_is_a_problem(folder: Path) -> None:
    whole = (folder / "model.pt").read_bytes()
    (folder / "model.pt").write_bytes(whole[:-10])
    assert problems(folder) == [
        f"model.pt ({len(whole) - 10} bytes) is cut off or no PyTorch checkpoint"
    ]


def test_a_zip_that_is_no_checkpoint_is_a_problem(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.pt", "w") as archive:
        archive.writestr("readme.txt", b"")
    assert "no PyTorch checkpoint" in problems(folder)[0]


def test_a_checkpoint_whose_hash_will_be_compared_is_not_looked_into(folder: Path) -> None:
    (folder / "model.pt").write_bytes(b"12345")
    assert file_problems(locate(folder)[0], hashed_size_bytes=5) == []


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("model: Paraformer", "config.yaml is for model: Paraformer, not SenseVoiceSmall"),
        ("- a list", "config.yaml is for model: None, not SenseVoiceSmall"),
        ("a: [", "config.yaml is no YAML: "),
        ("!!python/object/apply:os.getcwd []", "config.yaml is no YAML: "),
    ],
)
def test_a_configuration_of_something_else_is_a_problem(
    folder: Path, config: str, problem: str
) -> None:
    (folder / "config.yaml").write_text(config)
    assert problems(folder)[0].startswith(problem)


def test_configuration_json_names_the_parts(folder: Path) -> None:
    name_parts(
        folder,
        init_param="weights.pt",
        config="my.yaml",
        tokenizer_conf={"bpemodel": "my.model"},
        frontend_conf={"cmvn_file": "my.mvn"},
    )
    files, found = locate(folder)
    assert found == []
    assert files.checkpoint == folder / "weights.pt"
    assert files.config_yaml == folder / "my.yaml"
    assert files.bpe_model == folder / "my.model"
    assert files.cmvn == folder / "my.mvn"


def test_where_configuration_json_is_silent_the_usual_names_hold(folder: Path) -> None:
    name_parts(folder, tokenizer_conf=None)
    assert problems(folder) == []
    assert locate(folder)[0].bpe_model == folder / "any.bpe.model"


@pytest.mark.parametrize("name", ["/etc/passwd", "../elsewhere.pt", 5, ""])
def test_configuration_json_may_not_point_out_of_the_folder(folder: Path, name: object) -> None:
    name_parts(folder, init_param=name)
    assert problems(folder) == [
        f"configuration.json: init_param must name a file in the folder: {name!r}"
    ]


def test_a_configuration_json_that_is_none_is_a_problem(folder: Path) -> None:
    (folder / "configuration.json").write_text("{")
    assert problems(folder)[0].startswith("configuration.json cannot be read: ")
