from __future__ import annotations

import json
import shutil
import subprocess
import sys
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bench.compare import ROWS, Comparison, Start, chosen_rows, make_report, set_up
from bench.peers.audio import write_wavs
from bench.peers.funasr_model import link_folder
from bench.peers.participants import PARTICIPANTS, Participant, Setup
from bench.peers.process import ROOT, PeerError, Process, Worker
from bench.peers.report import Load, Measured, Outcome, Row, as_json, table
from bench.peers.sherpa_model import export_graph
from bench.peers.worker import Run
from sensevoice_service.types import PROMPT_FRAMES
from tests.conftest import DEMO_FOLDER
from tests.models import Model

ROW = Row("a-row", "what it is given", "short", "ours", "theirs", 2.0)
OURS = Measured(60.0, warm_up_s=9.0, walls_s=(1.0, 2.0, 3.0), n_characters=5)
THEIRS = Measured(60.0, warm_up_s=9.0, walls_s=(4.0, 4.0, 3.0), n_characters=7)
NOT_THERE = Measured(60.0, problem="failed: ended with status 1; the end of its log:\nno such file")


def test_speed_is_audio_seconds_by_wall_seconds() -> None:
    assert OURS.rtfx == (60.0, 30.0, 20.0)


def test_the_ratio_is_of_the_medians_and_the_spread_of_the_rounds() -> None:
    outcome = Outcome(ROW, OURS, THEIRS)
    assert outcome.ratio == 30.0 / 15.0
    assert outcome.ratios == (4.0, 2.0, 1.0)


@pytest.mark.parametrize(
    ("goal", "verdict"), [(2.0, "met"), (1.9, "met"), (2.01, "short"), (None, "–")]
)
def test_a_goal_is_met_from_its_own_figure_on(goal: float | None, verdict: str) -> None:
    assert Outcome(replace(ROW, goal=goal), OURS, THEIRS).verdict == verdict


def test_the_table_has_a_line_for_each_row_with_its_figures() -> None:
    lines = table([Outcome(ROW, OURS, THEIRS)]).splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert len(lines) == 3
    assert len(set(map(len, lines))) == 1
    assert cells[:2] == ["a-row", "what it is given"]
    assert cells[2:6] == ["ours", "30.0 (20.0..60.0)", "theirs", "15.0 (15.0..20.0)"]
    assert cells[6:] == ["2.00", "1.00..4.00", "≥ 2", "met"]


@pytest.mark.parametrize("sides", [(OURS, NOT_THERE), (NOT_THERE, THEIRS)])
def test_a_side_that_failed_is_named_in_its_line_and_explained_below(
    sides: tuple[Measured, Measured],
) -> None:
    whole = Outcome(replace(ROW, name="whole"), OURS, THEIRS)
    text = table([Outcome(ROW, *sides), whole])
    name = "theirs" if sides[1] is NOT_THERE else "ours"
    line = next(line for line in text.splitlines() if line.startswith("| a-row"))
    assert f"{name} failed: ended with status 1 |" in line
    assert text.endswith("the end of its log:\nno such file")
    assert "| met" in text


def test_the_json_holds_each_wall_of_each_participant() -> None:
    content = as_json(
        [Outcome(ROW, OURS, THEIRS), Outcome(ROW, OURS, NOT_THERE)],
        {("short", "ours"): OURS, ("short", "theirs"): THEIRS, ("long", "ours"): NOT_THERE},
    )
    content = json.loads(json.dumps(content))
    assert content["timings"]["short"]["theirs"]["walls_s"] == [4.0, 4.0, 3.0]
    assert content["timings"]["short"]["ours"]["warm_up_s"] == 9.0
    assert "no such file" in content["timings"]["long"]["ours"]["problem"]
    first, second = content["rows"]
    assert (first["ratio"], first["ratios"], first["verdict"]) == (2.0, [4.0, 2.0, 1.0], "met")
    assert "no such file" in second["problem"]
    assert "ratio" not in second


def test_the_report_says_on_what_it_was_measured() -> None:
    report = make_report({"rounds": 5, "xinference": None})
    assert report.machine["cores"] >= 1
    assert report.machine["cpu"] in report.header()
    assert "rounds=5" in report.header()
    assert {"python", "torch", "funasr"} <= set(report.versions)


def test_every_row_names_participants_that_can_be_started() -> None:
    assert {name for row in ROWS for name in (row.ours, row.peer)} == PARTICIPANTS.keys()


def test_rows_are_chosen_by_name_and_by_who_takes_part() -> None:
    assert chosen_rows(None, None) == list(ROWS)
    assert [row.name for row in chosen_rows("long-sherpa,http-single", None)] == [
        "http-single",
        "long-sherpa",
    ]
    assert [row.name for row in chosen_rows(None, "ours-http,funasr,ours-fp32")] == [
        "http-single",
        "fp32-single",
    ]
    with pytest.raises(ValueError, match="not known: row; known: http-funasr-server"):
        chosen_rows("row", None)


def test_the_audio_is_of_the_length_asked_for_and_the_same_each_time(tmp_path: Path) -> None:
    first = write_wavs(tmp_path / "first", 3, 1.5)
    again = write_wavs(tmp_path / "again", 3, 1.5)
    with wave.open(str(first[0]), "rb") as reader:
        assert (reader.getnframes(), reader.getframerate()) == (24_000, 16_000)
        assert (reader.getnchannels(), reader.getsampwidth()) == (1, 2)
    contents = [path.read_bytes() for path in first]
    assert contents == [path.read_bytes() for path in again]
    assert len(set(contents)) == 3


def test_funasr_is_given_the_same_model_with_the_number_of_threads(tmp_path: Path) -> None:
    linked = link_folder(DEMO_FOLDER, tmp_path / "linked", 3)
    wanted = yaml.safe_load((DEMO_FOLDER / "config.yaml").read_text("utf-8"))
    assert yaml.safe_load((linked / "config.yaml").read_text("utf-8")) == wanted | {"ncpu": 3}
    assert {path.name for path in linked.iterdir()} == {path.name for path in DEMO_FOLDER.iterdir()}
    assert (linked / "model.pt").samefile(DEMO_FOLDER / "model.pt")


SHORT = Load("short", n_files=2, duration_s=0.5, at_once=1)
LATE = Load("late", n_files=1, duration_s=0.5, at_once=1)
PAIR = (ROW, replace(ROW, name="again", load="late"))


class Echo:
    """Notes each run in ``calls``; what it hears in a file is up to ``text``."""

    def __init__(self, name: str, calls: list[str], text: Callable[[Path], str]) -> None:
        self._name = name
        self._calls = calls
        self._text = text

    def run(self, paths: Sequence[Path], at_once: int) -> Run:
        self._calls.append(self._name)
        return Run(0.5, [self._text(path) for path in paths])

    def stop(self) -> None:
        self._calls.append(f"{self._name} stopped")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(DEMO_FOLDER, DEMO_FOLDER, tmp_path, tmp_path, threads=1, xinference=None)


def hear(_: Path) -> str:
    return "heard"


def echoes(calls: list[str], text: Callable[[Path], str] = hear) -> Start:
    """Ours always hears; what the peer hears is up to ``text``."""

    def start(name: str, _: Setup) -> Participant:
        return Echo(name, calls, hear if name == "ours" else text)

    return start


def test_participants_take_turns_and_another_one_goes_first_each_round(setup: Setup) -> None:
    calls: list[str] = []
    (outcome,) = Comparison(setup, [ROW], [SHORT, LATE], echoes(calls)).measure(rounds=2)
    assert calls == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert outcome.ours == Measured(1.0, warm_up_s=0.5, walls_s=(0.5, 0.5), n_characters=10)
    assert outcome.ratio == 1.0


def test_a_peer_that_does_not_start_leaves_the_others_to_be_measured(setup: Setup) -> None:
    def start(name: str, _: Setup) -> Participant:
        if name == "theirs":
            raise PeerError("cannot be started")
        return Echo(name, [], hear)

    (outcome,) = Comparison(setup, [ROW], [SHORT], start).measure(rounds=2)
    assert outcome.problem == "theirs failed: cannot be started"
    assert outcome.ours.walls_s == (0.5, 0.5)


def test_a_peer_that_fails_is_stopped_and_keeps_what_was_measured_before(setup: Setup) -> None:
    calls: list[str] = []

    def until_late(path: Path) -> str:
        if path.parent.name == LATE.name:
            raise PeerError("ended")
        return hear(path)

    outcomes = Comparison(setup, PAIR, [SHORT, LATE], echoes(calls, until_late)).measure(rounds=1)
    assert [outcome.problem for outcome in outcomes] == [None, "theirs failed: ended"]
    assert outcomes[0].ratio == 1.0
    assert calls.count("theirs stopped") == 1
    assert outcomes[1].ours.walls_s == (0.5,)


def test_a_peer_that_hears_nothing_has_failed(setup: Setup) -> None:
    (outcome,) = Comparison(setup, [ROW], [SHORT], echoes([], lambda _: "")).measure(rounds=1)
    assert outcome.problem == "theirs failed: gave no text"


def test_xinference_is_left_out_where_it_is_not_given(setup: Setup) -> None:
    row = replace(ROW, peer="xinference")
    (outcome,) = Comparison(setup, [row], [SHORT], echoes([])).measure(rounds=1)
    assert outcome.problem == "xinference not measured: no --xinference given"


@pytest.fixture
def run_code(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start Python on a line of code; every process is stopped in the end."""
    running: list[Process] = []

    def run(code: str, *, is_worker: bool = True) -> Process:
        process = Process([sys.executable, "-c", code], tmp_path / "log", {}, is_worker=is_worker)
        running.append(process)
        return process

    yield run
    for process in running:
        process.stop()


def test_a_worker_answers_a_request_by_a_line(run_code: Callable[..., Process]) -> None:
    code = "import json; print(json.dumps({'got': json.loads(input())}))"
    assert Worker(run_code(code)).ask({"run": ["a.wav"]}, 60) == {"got": {"run": ["a.wav"]}}


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import sys; sys.exit('went wrong')", "ended; the end of its log:\nwent wrong"),
        ("import json; print(json.dumps({'error': 'no model'})); input()", "no model; the end"),
    ],
)
def test_a_worker_that_fails_tells_why(
    run_code: Callable[..., Process], code: str, what: str
) -> None:
    with pytest.raises(PeerError, match=what):
        Worker(run_code(code)).answer(60)


def test_a_worker_that_does_not_answer_is_not_waited_for_longer_than_told(
    run_code: Callable[..., Process],
) -> None:
    with pytest.raises(PeerError, match="no answer within 0 s"):
        Worker(run_code("input()")).answer(0.05)


def test_a_server_that_ends_before_it_is_ready_is_not_waited_for(
    run_code: Callable[..., Process],
) -> None:
    process = run_code("raise SystemExit('no port')", is_worker=False)
    with pytest.raises(PeerError, match=r"ended with status 1 before it was ready(.|\n)*no port"):
        process.wait_until(lambda: False, timeout_s=60)


def test_what_was_started_is_stopped_however_the_benchmark_ends(tmp_path: Path) -> None:
    started: list[Process] = []

    def interrupted() -> None:
        with set_up(DEMO_FOLDER, threads=1, cache=tmp_path, xinference=None) as setup:
            log = setup.scratch / "log"
            process = Process([sys.executable, "-c", "input()"], log, {}, is_worker=True)
            setup.running.append(process)
            started.append(process)
            Worker(process)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert started[0].popen.returncode is not None
    assert not started[0].log.exists()


def test_the_graph_for_sherpa_hears_what_our_network_hears(demo: Model, tmp_path: Path) -> None:
    network = demo.engine.model
    export_graph(network, tmp_path / "model.onnx")
    onnxruntime: Any = import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    features = torch.randn(3, 40, 560, generator=torch.Generator().manual_seed(1))
    rows = [torch.tensor(values) for values in ([40, 7, 23], [0, 3, 4], [14, 15, 14])]
    with torch.inference_mode():
        wanted = network(features, *rows)
    inputs = dict(zip(("x_length", "language", "text_norm"), rows, strict=True))
    fed = {name: row.int().numpy() for name, row in inputs.items()} | {"x": features.numpy()}
    (found,) = session.run(None, fed)
    for row, n_frames in enumerate(rows[0].tolist()):
        end = PROMPT_FRAMES + n_frames
        np.testing.assert_allclose(found[row, :end], wanted[row, :end], atol=1e-4)


def test_ours_and_funasr_are_compared_on_the_model_in_the_cache(tmp_path: Path) -> None:
    shutil.copytree(DEMO_FOLDER, tmp_path / "random-model")
    command = [sys.executable, "-m", "bench.compare", "--cache", str(tmp_path), "--rounds", "1"]
    command += ["--only", "fp32-single", "--scale", "0.05", "--threads", "1"]
    command += ["--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "| fp32-single |" in done.stdout
    content = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    (row,) = content["results"]["rows"]
    assert row["verdict"] in ("met", "short"), row
    timings = content["results"]["timings"]["single"]
    assert {name: len(one["walls_s"]) for name, one in timings.items()} == {
        "ours-fp32": 1,
        "funasr": 1,
    }
    assert content["settings"]["loads"][1]["duration_s"] == 1.5
