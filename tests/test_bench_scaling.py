"""What the benchmarks make of their measurements."""

from __future__ import annotations

import argparse
import io
import json
import os
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import overhead, precision
from bench.overhead import Round, Stage, stages, whole_turns
from bench.report import Goal, Report, environment_of, median, numbers, quantile, table
from bench.scaling import (
    CLIP_S,
    DurationRow,
    LoadRow,
    Run,
    cut_off,
    goals,
    make_clips,
    make_mp3,
    panels,
    schedule,
    speech,
    spread,
    summarise,
    summarise_load,
)
from bench.server import Load, RssPeak, Server, run_load
from sensevoice_service.types import SAMPLE_RATE_HZ
from tests.audio_files import decoded
from tests.http_service import PATIENCE_S, house, serving
from training.evaluate import Condition, Score


def row(
    minutes: float, relative: float, rss_over_idle_mb: float = 100.0, wall_per_hour_s: float = 9.0
) -> DurationRow:
    return DurationRow(minutes, 1, wall_per_hour_s, relative, rss_over_idle_mb)


def test_the_shortest_runs_are_between_all_others_and_those_are_spread() -> None:
    order = schedule([60, 180, 1, 10])
    assert order[:5] == order[-5:] == [1] * 5
    assert order[5::6] == [10, 60, 180, 10, 10, 60, 180, 10, 10, 60, 180, 10]
    assert order.count(1) == 13 * 5


def test_no_length_is_sent_less_than_three_times_or_more_for_being_named_twice() -> None:
    assert schedule([1, 1_000]).count(1_000) == 3
    assert schedule([60, 60]) == [60] * 5
    assert schedule([]) == []


def test_a_row_has_the_median_time_and_the_memory_of_the_first_run() -> None:
    runs = [Run(1, 9, 50), Run(60, 8, 70), Run(1, 30, 300), Run(1, 7, 20)]
    short, long = summarise(runs)
    assert (short.minutes, short.n_runs, short.wall_per_hour_s) == (1, 3, 9)
    assert (short.rss_over_idle_mb, long.rss_over_idle_mb) == (50, 70)
    assert short.rtfx == 400


def test_a_length_is_held_to_the_shortest_runs_beside_it_whatever_the_machine_does() -> None:
    fast, slow = [Run(1, 10, 0)] * 5, [Run(1, 30, 0)] * 5
    runs = [*fast, Run(60, 9, 0), *fast, *slow, Run(60, 27, 0), *slow, Run(60, 6, 0), *slow]
    short, long = summarise(runs)
    assert short.relative == 1
    assert long.relative == pytest.approx(0.9)


def test_the_spread_is_between_the_slowest_and_the_fastest_length() -> None:
    rows = [row(1, 1, wall_per_hour_s=50), row(10, 0.8), row(60, 0.9)]
    assert spread(rows) == pytest.approx(0.25)
    assert spread([row(1, 1)]) == 0


@pytest.mark.parametrize(
    ("times", "rss_mb", "met"),
    [((1, 1.09), 250, [True, True]), ((1, 1.2), 249, [False, True]), ((1, 1), 251, [True, False])],
)
def test_goals_are_of_the_spread_and_of_the_longest_file(
    times: tuple[float, float], rss_mb: float, met: list[bool]
) -> None:
    rows = [row(1, times[0], 999), row(180, times[1], rss_mb)]
    found = goals(rows)
    assert [goal.met for goal in found] == met
    assert "180 min" in found[1].what


def test_without_durations_there_are_no_goals() -> None:
    assert goals([]) == []


def test_a_load_is_summed_up_by_its_quantiles() -> None:
    latencies_s = tuple(float(n) for n in range(1, 102))
    load = Load(n_clients=4, wall_s=5.0, audio_s=1_010.0, latencies_s=latencies_s)
    assert summarise_load(load, 3_000_000) == LoadRow(4, 101, 202.0, 51.0, 96.0, 3.0)


def test_only_what_was_measured_is_charted() -> None:
    of_lengths = panels([row(1, 1, wall_per_hour_s=10), row(10, 1, wall_per_hour_s=12)], [])
    assert [panel.title for panel in of_lengths] == ["Time", "Memory"]
    assert of_lengths[0].lines == {"time": [(1, 10), (10, 12)]}
    of_loads = panels([], [LoadRow(2, 16, 50.0, 0.1, 0.3, 40.0)])
    assert of_loads[1].lines == {"p50": [(2, 0.1)], "p95": [(2, 0.3)]}


def test_clips_are_wav_files_of_ten_seconds_and_the_same_each_time() -> None:
    clips = make_clips()
    assert clips == make_clips()
    assert len(set(clips)) == len(clips)
    with wave.open(io.BytesIO(clips[0])) as reader:
        assert reader.getparams()[:4] == (1, 2, SAMPLE_RATE_HZ, CLIP_S * SAMPLE_RATE_HZ)


def test_the_speech_has_pauses_and_is_never_clipped() -> None:
    blocks = list(cut_off(speech(np.random.default_rng(1), SAMPLE_RATE_HZ), 20 * SAMPLE_RATE_HZ))
    samples = np.concatenate(blocks)
    levels = np.sqrt(np.mean(samples.reshape(-1, SAMPLE_RATE_HZ // 20) ** 2, axis=1))
    assert len(samples) == 20 * SAMPLE_RATE_HZ
    assert 0.1 < np.mean(levels < 0.003) < 0.6
    assert 0.2 < np.abs(samples).max() < 1


def test_an_mp3_file_is_as_long_as_asked_at_64_kbit_and_made_once(tmp_path: Path) -> None:
    path = make_mp3(tmp_path / "kept", 0.1)
    data = path.read_bytes()
    assert len(decoded(data)) == pytest.approx(6 * SAMPLE_RATE_HZ, abs=SAMPLE_RATE_HZ // 20)
    assert len(data) == pytest.approx(6 * 64_000 / 8, rel=0.05)
    path.write_bytes(b"kept")
    assert make_mp3(tmp_path / "kept", 0.1).read_bytes() == b"kept"
    assert list(path.parent.iterdir()) == [path]


def test_quantiles_lie_between_neighbours() -> None:
    assert median([4, 1, 2, 3]) == 2.5
    assert quantile([0, 10], 0.95) == pytest.approx(9.5)
    with pytest.raises(ValueError, match="no values"):
        median([])


@pytest.mark.parametrize(
    ("goal", "line"),
    [
        (Goal("RSS", 250, 250, " MB"), "met: RSS 250 MB, at most 250 MB"),
        (Goal("RSS", 251, 250, " MB"), "MISSED: RSS 251 MB, at most 250 MB"),
        (Goal("ratio", 92, 92, " %", is_least=True), "met: ratio 92 %, at least 92 %"),
        (Goal("ratio", 91.9, 92, " %", is_least=True), "MISSED: ratio 91.9 %, at least 92 %"),
    ],
)
def test_a_goal_is_met_up_to_its_bound(goal: Goal, line: str) -> None:
    assert goal.line() == line


def test_tables_have_columns_of_one_width_and_figures_to_the_right() -> None:
    rows = [Goal("speed", 1.25, 2), Goal("memory", 100, 2)]
    assert table({"goal": "{0.what}", "found": "{0.measured:.1f}"}, rows).splitlines() == [
        "| goal   | found |",
        "|--------|------:|",
        "| speed  |   1.2 |",
        "| memory | 100.0 |",
    ]


def test_a_report_is_written_with_its_circumstances(tmp_path: Path) -> None:
    report = Report("scaling", {"QUANTIZE": "int8", "MODEL": tmp_path})
    file = tmp_path / "report.json"
    report.write(file, {"rows": [row(1, 1, wall_per_hour_s=10)]}, [Goal("RSS", 300, 250)])
    body = json.loads(file.read_text(encoding="utf-8"))
    assert body["settings"] == {"QUANTIZE": "int8", "MODEL": str(tmp_path)}
    assert body["results"]["rows"][0]["wall_per_hour_s"] == 10
    assert body["goals"][0]["met"] is False
    assert body["machine"]["cores"] >= 1
    assert body["machine"]["memory_bytes"] > 2**20
    assert "torch" in body["versions"]
    for part in ("# scaling", body["machine"]["cpu"], "QUANTIZE=int8", body["versions"]["python"]):
        assert part in report.header()


@pytest.mark.parametrize("text", ["1,0", "-1", "x"])
def test_lists_of_numbers_refuse_what_is_none_over_zero(text: str) -> None:
    with pytest.raises((ValueError, argparse.ArgumentTypeError), match=r"over 0|not convert"):
        numbers(text)


def test_lists_of_numbers_may_be_empty() -> None:
    assert numbers("") == []
    assert numbers("0.5,10") == [0.5, 10]


@pytest.mark.parametrize("assignment", ["QUANTIZE", "QUANTISE=int8"])
def test_what_is_no_setting_is_refused(assignment: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="QUANTI"):
        environment_of(tmp_path, [assignment])


def test_settings_are_handed_over_and_the_model_is_the_one_named(tmp_path: Path) -> None:
    found = environment_of(tmp_path, ["QUANTIZE=off", "MODEL=demo"])
    assert found == {"QUANTIZE": "off", "MODEL": str(tmp_path.resolve())}


@pytest.mark.parametrize(
    ("wanted", "n_requests"), [(0, 8), (7.2, 8), (8, 8), (8.1, 16), (100, 104)]
)
def test_each_client_has_as_many_requests(wanted: float, n_requests: int) -> None:
    assert whole_turns(wanted, 8) == n_requests


def test_stages_are_means_of_the_log_over_the_whole_way() -> None:
    rounds = [Round(100, 80), Round(200, 100), Round(400, 125)]
    logged = [
        {"infer_ms": 150, "decode_ms": 2, "wait_ms": 0, "queue_ms": 5, "total_ms": 300},
        {"infer_ms": 170, "decode_ms": 4, "wait_ms": 0, "queue_ms": 15, "total_ms": 500},
    ]
    found = {stage.name.partition(",")[0]: stage for stage in stages(rounds, logged, 10.0, 2)}
    assert found["the whole way"] == Stage("the whole way, time for one more clip", 100, 1)
    assert found["engine alone"].share == 0.5
    assert found["inference threads"].ms_per_clip == 80
    assert found["front end alone"].ms_per_clip == 5
    assert found["decoding"].ms_per_clip == 3
    assert overhead.latencies_ms(logged)["from its head to its answer"] == 400


def test_the_overhead_is_judged_by_the_median_round_and_the_slowest_start() -> None:
    rounds = [Round(100, 99), Round(100, 50), Round(100, 92)]
    ratio, start = overhead.goals(rounds, [3.0, 8.5, 4.0])
    assert (ratio.measured, ratio.met) == (92, True)
    assert (start.measured, start.met) == (8.5, False)
    assert overhead.goals([], []) == []


def test_a_precision_is_compared_condition_by_condition_and_over_all() -> None:
    quiet = Condition("base", "en", sound="clean", use_itn=False, prompt="auto")
    noisy = Condition("base", "en", sound="noisy", use_itn=False, prompt="auto")
    reference = {quiet: score_of(1_000, 10), noisy: score_of(3_000, 90)}
    scores = {quiet: score_of(1_000, 9), noisy: score_of(3_000, 97)}
    rows = precision.rows_of("int8", "int8", scores, reference)
    assert [row.conditions for row in rows] == ["base en clean", "base en noisy", "all"]
    assert [row.worse_points for row in rows] == pytest.approx([-0.1, 7 / 30, 0.15])
    (goal,) = precision.goals(rows)
    assert not goal.met
    assert precision.goals(precision.rows_of("off", "fp32", reference, reference)) == []


def score_of(n_tokens: int, n_errors: int) -> Score:
    return Score(n_tokens, n_errors, 0, 100, ())


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Real routes in this process, without a model: each file is 1.5 s long."""
    with serving(house().app()) as port:
        yield Server(os.getpid(), port, 0.0, {}, tmp_path / "log")


def test_a_load_sends_each_request_once(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "speech"
    file.write_bytes(b"from a file")
    load = run_load(server, [b"one", file], n_clients=3, n_requests=7, timeout_s=PATIENCE_S)
    assert (load.n_clients, len(load.latencies_s), load.audio_s) == (3, 7, 7 * 1.5)
    assert max(load.latencies_s) <= load.wall_s


def test_a_load_fails_with_the_answer_that_is_none(server: Server) -> None:
    with pytest.raises(RuntimeError, match="415"):
        run_load(server, [b"one", b"noise"], n_clients=2, n_requests=4, timeout_s=PATIENCE_S)


def test_the_peak_of_memory_is_seen_before_and_after_the_block(server: Server) -> None:
    before_bytes = server.rss_bytes()
    with RssPeak(server) as rss:
        held = np.ones(8_000_000)
    assert rss.peak_bytes >= before_bytes + held.nbytes // 2
