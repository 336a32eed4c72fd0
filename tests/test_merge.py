from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from sensevoice_service.merge import Merger, merge
from sensevoice_service.tags import Vocabulary, join_texts
from sensevoice_service.types import (
    FRAME_SAMPLES,
    SAMPLE_RATE_HZ,
    ChunkResult,
    Hypothesis,
    Transcript,
)

TAGS = ("zh", "en", "ja", "nospeech", "unknown", "HAPPY", "SAD", "EMO_UNKNOWN", "Speech", "BGM")
WORDS = ("▁no", "▁the", "▁cat", "▁bat", "▁dog", "▁sat", "▁is", "▁in", "▁per", "▁un", "▁a")
REST = ("s", "form", "ance", "ation", "er", ".", ",", "，")
HANZI = "今天气很好我们去公园看花鸟鱼虫山水人口手足日月星云风雨雪"
PIECES = ("<unk>", "<s>", "</s>", *(f"<|{tag}|>" for tag in TAGS), *WORDS, *REST, *HANZI)
IDS = {piece: i for i, piece in enumerate(PIECES)}

Heard = list[tuple[str, int]]  # pieces and their first frames on the file's clock
CHUNK_FRAMES = 100  # 6 s
OVERLAP_FRAMES = 30  # 1.8 s


def decode(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids).replace("▁", " ").removeprefix(" ")


VOCABULARY = Vocabulary.from_pieces(PIECES, decode)


def result(
    heard: Heard,
    *,
    start: int = 0,
    frames: int = CHUNK_FRAMES,
    overlap: int = 0,
    prompt: str = "<|en|> <|HAPPY|> <|Speech|>",
) -> ChunkResult:
    """A chunk from frame ``start`` of the file, its tokens one frame long."""
    first = np.array([frame - start for _, frame in heard], np.int32)
    ids = np.array([IDS[piece] for piece, _ in heard], np.int32)
    prompt_ids = tuple(IDS[piece] for piece in prompt.split())
    return ChunkResult(
        start_sample=start * FRAME_SAMPLES,
        end_sample=(start + frames) * FRAME_SAMPLES,
        overlap_samples=overlap * FRAME_SAMPLES,
        hypothesis=Hypothesis(ids, first, first, prompt_ids),
    )


def merged(*results: ChunkResult) -> Transcript:
    return merge(results, VOCABULARY, max((r.end_sample for r in results), default=0))


def merged_pair(left: Heard, right: Heard) -> str:
    """The text of chunks at frames 0…100 and 70…170, which share 70…100 (middle: 85)."""
    first = result(left)
    second = result(right, start=CHUNK_FRAMES - OVERLAP_FRAMES, overlap=OVERLAP_FRAMES)
    return merged(first, second).text


def test_speech_without_a_pause_becomes_one_segment() -> None:
    transcript = merged(result([("▁the", 2), ("▁cat", 8), ("s", 10)]))
    (segment,) = transcript.segments
    assert (transcript.text, segment.text) == ("the cats", "the cats")
    assert [word.text for word in segment.words] == ["the", " cats"]
    assert segment.start_s == pytest.approx(0.09)
    assert segment.end_s == pytest.approx(0.66)
    assert (segment.language, segment.emotion, segment.events) == ("en", "HAPPY", ("Speech",))
    assert transcript.duration_s == 6.0


def test_no_chunks_are_an_empty_file() -> None:
    assert merged() == Transcript("", "unknown", "EMO_UNKNOWN", (), 0.0, ())


def test_silence_has_no_segments() -> None:
    prompt = "<|nospeech|> <|EMO_UNKNOWN|>"
    quiet = [result([], start=start, prompt=prompt) for start in (0, 100)]
    assert merged(*quiet) == Transcript("", "nospeech", "EMO_UNKNOWN", (), 12.0, ())


def test_a_clean_seam_keeps_every_token() -> None:
    left = result([("▁the", 2), ("▁cat", 95)])
    right = result([("▁cat", 101), ("s", 103), ("▁is", 130)], start=100)
    transcript = merged(left, right)
    assert transcript.text == "the cat cats is"
    assert [segment.text for segment in transcript.segments] == ["the", "cat cats", "is"]
    starts_s = [word.start_s for segment in transcript.segments for word in segment.words]
    assert starts_s == pytest.approx([0.09, 5.67, 6.03, 7.77])


@pytest.mark.parametrize("prompt", ["<|zh|> <|HAPPY|> <|Speech|>", "<|en|> <|SAD|> <|Speech|>"])
def test_a_segment_ends_at_a_seam_where_the_tags_change(prompt: str) -> None:
    left = result([("▁the", 92), ("▁cat", 96)])
    transcript = merged(left, result([("▁sat", 101), ("▁in", 104)], start=100, prompt=prompt))
    assert transcript.text == "the cat sat in"
    assert [segment.text for segment in transcript.segments] == ["the cat", "sat in"]
    tags = [f"<|{one.language}|> <|{one.emotion}|> <|Speech|>" for one in transcript.segments]
    assert tags == ["<|en|> <|HAPPY|> <|Speech|>", prompt]


def test_words_heard_twice_are_written_once() -> None:
    shared = [("▁dog", 73), ("▁is", 78), ("▁in", 84), ("▁a", 90), ("▁bat", 96)]
    text = merged_pair([("▁the", 60), *shared], [*shared, ("▁cat", 110)])
    assert text == "the dog is in a bat cat"


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_frames_may_differ_a_little(shift: int) -> None:
    shared = [("▁dog", 73), ("▁is", 78), ("▁in", 84), ("▁a", 90), ("▁bat", 96)]
    moved = [(piece, frame + shift) for piece, frame in shared]
    text = merged_pair([("▁the", 60), *shared], [*moved, ("▁cat", 110)])
    assert text == "the dog is in a bat cat"


def test_a_token_just_outside_the_overlap_on_one_side_is_written_once() -> None:
    assert merged_pair([("▁the", 69)], [("▁the", 71), ("▁cat", 110)]) == "the cat"
    assert merged_pair([("▁the", 60), ("▁cat", 98)], [("▁cat", 101)]) == "the cat"


def test_repeated_words_are_told_apart_by_time() -> None:
    # Left misses the last one, right the first one, and the rest is a frame off.
    left = [("▁no", frame) for frame in (72, 77, 82, 87, 92)]
    right = [("▁no", frame) for frame in (78, 83, 86, 93, 98, 103)]
    assert merged_pair(left, right) == "no no no no no no no"


@pytest.mark.parametrize("n_words", range(1, 9))
def test_as_many_repeated_words_are_written_as_were_said(n_words: int) -> None:
    said = [("▁no", 70 + 4 * k) for k in range(n_words)]
    heard_right = [word for word in said if word[1] >= 74]
    heard_left = [word for word in said if word[1] < 96]
    text = merged_pair(heard_left, [*heard_right, ("▁cat", 130)])
    assert text == " ".join(["no"] * n_words + ["cat"])


def test_cut_words_at_both_edges_give_way_to_the_whole_ones() -> None:
    left = [("▁the", 68), ("▁cat", 72), ("▁is", 78), ("▁in", 84), ("▁a", 90), ("▁un", 98)]
    right = [("▁bat", 71), ("er", 72), ("▁is", 78), ("▁in", 84), ("▁a", 90), ("▁dog", 97)]
    assert merged_pair(left, right) == "the cat is in a dog"


def test_each_side_is_trusted_up_to_the_middle() -> None:
    left = [("▁the", 76), ("▁dog", 79), ("▁is", 85), ("▁bat", 90), ("▁in", 94)]
    right = [("▁the", 76), ("▁no", 79), ("▁is", 85), ("▁cat", 90), ("▁in", 94)]
    assert merged_pair(left, right) == "the dog is cat in"


def test_a_match_near_an_edge_is_the_last_to_be_trusted() -> None:
    left = [("▁the", 60), ("▁cat", 72), ("▁in", 82), ("form", 85), ("▁un", 97)]
    right = [("▁cat", 72), ("▁bat", 74), ("form", 85), ("ance", 88), ("▁is", 110)]
    assert merged_pair(left, right) == "the cat informance is"
    assert merged_pair(left[:2], right) == "the cat batformance is"


def test_disagreement_in_the_middle_takes_one_side_of_it() -> None:
    left = [("▁the", 72), ("▁is", 76), ("▁cat", 85), ("▁in", 92), ("▁a", 96)]
    right = [("▁the", 72), ("▁is", 76), ("▁bat", 85), ("▁in", 92), ("▁a", 96)]
    assert merged_pair(left, right) in {"the is cat in a", "the is bat in a"}


def test_pieces_of_one_word_come_from_one_side() -> None:
    # Both heard the piece nearest to the middle, but in different words.
    left = [("▁the", 76), ("▁in", 84), ("form", 86), ("▁is", 94)]
    right = [("▁the", 76), ("▁per", 84), ("form", 86), ("ance", 88), ("▁is", 94)]
    assert merged_pair(left, right) in {"the inform is", "the performance is"}


def test_a_word_across_the_splice_stays_one_word() -> None:
    first = result([("▁the", 60), ("▁in", 82), ("form", 85)])
    second = result([("form", 85), ("ation", 88), ("s", 91)], start=70, overlap=30)
    transcript = merged(first, second)
    assert transcript.text == "the informations"
    assert [segment.text for segment in transcript.segments] == ["the", "informations"]


def test_a_comma_at_the_splice_stays_with_the_words_before_it() -> None:
    first = result([("今", 60), ("天", 80), ("，", 85), ("气", 97)])
    second = result([("好", 72), ("，", 85), ("很", 90), ("好", 120)], start=70, overlap=30)
    words = [word.text for segment in merged(first, second).segments for word in segment.words]
    assert words == ["今", "天，", "很", "好"]


def test_sides_that_agree_on_nothing_share_the_overlap() -> None:
    left = [("▁the", 60), ("▁cat", 75), ("s", 77), ("▁is", 90), ("▁in", 95)]
    right = [("▁a", 74), ("▁dog", 91), ("er", 93), ("▁un", 97), ("▁sat", 120)]
    assert merged_pair(left, right) == "the cats doger un sat"


def test_a_side_with_a_stray_word_does_not_cost_the_words_of_the_other() -> None:
    words = [("▁the", 77), ("▁cat", 81), ("▁is", 85), ("▁in", 89), ("▁a", 93)]
    assert merged_pair([("▁un", 98)], words) == "the cat is in a"
    assert merged_pair(words, [("▁un", 71)]) == "the cat is in a"


def test_pieces_without_a_word_start_are_not_lost() -> None:
    right = [("s", 90), ("er", 104), ("ation", 130)]
    assert merged_pair([("▁cat", 75)], right).replace(" ", "") == "catseration"


def test_a_side_without_words_in_the_overlap_leaves_it_to_the_other() -> None:
    words = [("▁the", 72), ("▁cat", 80), ("▁is", 90), ("▁in", 99)]
    assert merged_pair([], words) == "the cat is in"
    assert merged_pair([("▁a", 69)], words) == "a the cat is in"
    assert merged_pair(words, []) == "the cat is in"
    assert merged_pair(words, [("▁a", 101)]) == "the cat is in a"
    assert merged_pair([], []) == ""


def test_three_chunks_in_a_row_are_mended_at_both_seams() -> None:
    said = [(piece, 5 + 7 * k) for k, piece in enumerate(HANZI)]
    results = []
    for start in (0, 70, 140):
        heard = [word for word in said if start <= word[1] < start + CHUNK_FRAMES]
        results.append(result(heard, start=start, overlap=OVERLAP_FRAMES if start else 0))
    transcript = merged(*results)
    assert transcript.text == HANZI
    (segment,) = transcript.segments
    starts_s = [word.start_s for word in segment.words]
    assert starts_s == pytest.approx([0.06 * frame - 0.03 for _, frame in said])


def test_a_silent_chunk_between_two_is_passed_over() -> None:
    first = result([("▁the", 60), ("▁cat", 80)])
    second = result([], start=70, overlap=30, prompt="<|nospeech|> <|BGM|>")
    third = result([("▁sat", 145), ("▁in", 150)], start=140, overlap=30)
    transcript = merged(first, second, third)
    assert transcript.text == "the cat sat in"
    assert [segment.text for segment in transcript.segments] == ["the", "cat", "sat in"]
    assert transcript.events == ("Speech", "BGM")


def test_times_never_run_backwards_nor_past_the_end() -> None:
    first = result([("今", 60), ("天", 83), ("气", 87)])
    second = result([("天", 81), ("气", 83), ("很", 89), ("好", 172)], start=70, overlap=30)
    transcript = merge([first, second], VOCABULARY, 165 * FRAME_SAMPLES)
    times = [time for s in transcript.segments for time in (s.start_s, s.end_s)]
    assert transcript.text == "今天气很好"
    assert times == sorted(times)
    assert times[-1] == transcript.duration_s == 165 * FRAME_SAMPLES / SAMPLE_RATE_HZ


def test_language_and_emotion_are_those_of_most_tokens() -> None:
    transcript = merged(
        result([("▁the", 5)], prompt="<|en|> <|HAPPY|> <|BGM|>"),
        result([("今", 105), ("天", 110)], start=100, prompt="<|zh|> <|SAD|> <|Speech|>"),
        result([("▁no", 205)], start=200, prompt="<|en|> <|HAPPY|> <|Speech|>"),
        result([("▁no", 305)], start=300, prompt="<|zh|> <|HAPPY|> <|Speech|>"),
    )
    assert (transcript.language, transcript.emotion) == ("zh", "HAPPY")
    assert transcript.events == ("BGM", "Speech")


def test_the_first_of_equal_languages_is_named() -> None:
    left, right = result([("今", 5)], prompt="<|zh|>"), result([("▁a", 105)], start=100)
    assert merged(left, right).language == "zh"


def test_unknown_names_count_only_where_there_is_nothing_else() -> None:
    unknown = "<|nospeech|> <|EMO_UNKNOWN|>"
    loud = result([("▁a", 5), ("▁the", 9), ("▁no", 12)], prompt=unknown)
    known = result([("今", 105)], start=100, prompt="<|zh|> <|SAD|>")
    silent = result([], start=200, prompt="<|ja|> <|HAPPY|>")
    assert (merged(loud, known, silent).language, merged(loud, known).emotion) == ("zh", "SAD")
    assert (merged(loud, silent).language, merged(loud, silent).emotion) == (
        "nospeech",
        "EMO_UNKNOWN",
    )


def test_events_among_the_words_are_found_and_not_written() -> None:
    transcript = merged(result([("<|BGM|>", 1), ("▁the", 5), ("<|Speech|>", 7), ("▁cat", 9)]))
    assert transcript.text == "the cat"
    assert transcript.events == transcript.segments[0].events == ("Speech", "BGM")
    assert transcript.segments[0].start_s == pytest.approx(0.27)


def test_a_chunk_with_nothing_but_tags_gives_no_segment() -> None:
    transcript = merged(result([("<|BGM|>", 3)]))
    assert (transcript.text, transcript.segments) == ("", ())
    assert transcript.events == ("Speech", "BGM")


@dataclass(frozen=True)
class Timeline:
    """What was said, and how chunks hear it: unsure at their edges, a frame off elsewhere."""

    said: Heard
    rng: np.random.Generator

    def heard(self, start: int, stop: int, *, is_first: bool, is_last: bool) -> Heard:
        tokens: Heard = []
        for piece, frame in self.said:
            if not start <= frame < stop:
                continue
            at_edge = (frame < start + 5 and not is_first) or (frame >= stop - 5 and not is_last)
            if at_edge and self.rng.random() < 0.5:
                continue
            if at_edge and self.rng.random() < 0.5:
                piece = str(self.rng.choice([p for p, _ in self.said]))
            earliest = tokens[-1][1] + 1 if tokens else start
            frame = int(np.clip(frame + self.rng.integers(-1, 2), earliest, stop - 1))
            tokens.append((piece, frame))
        return tokens

    def transcript(self, n_frames: int) -> Transcript:
        results = []
        step = CHUNK_FRAMES - OVERLAP_FRAMES
        for start in range(0, n_frames - OVERLAP_FRAMES, step):
            stop = min(start + CHUNK_FRAMES, n_frames)
            heard = self.heard(start, stop, is_first=start == 0, is_last=stop == n_frames)
            overlap = OVERLAP_FRAMES if start else 0
            results.append(result(heard, start=start, frames=stop - start, overlap=overlap))
        return merge(results, VOCABULARY, n_frames * FRAME_SAMPLES)


def random_timeline(pieces: tuple[str, ...], seed: int, n_frames: int, most_apart: int) -> Timeline:
    rng = np.random.default_rng(seed)
    frames = np.cumsum(rng.integers(3, most_apart + 1, size=n_frames))
    frames = frames[frames < n_frames]
    said = [(str(rng.choice(pieces)), int(frame)) for frame in frames]
    return Timeline([("▁the", 0), *said], rng)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("most_apart", [3, 4, 8])
@pytest.mark.parametrize("pieces", [tuple(HANZI), (*WORDS, *REST[:5])], ids=["hanzi", "words"])
def test_overlapping_views_restore_what_was_said(
    pieces: tuple[str, ...], most_apart: int, seed: int
) -> None:
    timeline = random_timeline(pieces, seed, n_frames=700, most_apart=most_apart)
    transcript = timeline.transcript(700)
    expected = decode([IDS[piece] for piece, _ in timeline.said])
    if pieces == tuple(HANZI):
        expected = join_texts(expected.partition("the"))
    assert transcript.text == expected
    assert transcript.text == join_texts(segment.text for segment in transcript.segments)
    assert_timed(transcript)


def assert_timed(transcript: Transcript) -> None:
    """Times are in order and inside the file, and a segment is its words."""
    words = [word for segment in transcript.segments for word in segment.words]
    times = [0.0, *(t for word in words for t in (word.start_s, word.end_s))]
    assert times == sorted(times)
    assert times[-1] <= transcript.duration_s
    for segment in transcript.segments:
        assert "".join(word.text for word in segment.words) == segment.text
        assert segment.start_s == segment.words[0].start_s
        assert segment.end_s == segment.words[-1].end_s
    written = "".join(word.text for word in words)
    assert written.replace(" ", "") == transcript.text.replace(" ", "")


def random_results(seed: int) -> list[ChunkResult]:
    """Whatever a model hears, with clean seams and overlaps, and tags that change."""
    rng = np.random.default_rng(seed)
    results, start, overlap = list[ChunkResult](), 0, 0
    for _ in range(int(rng.integers(1, 7))):
        frames = int(rng.integers(overlap + 1, CHUNK_FRAMES + 50))
        heard_frames = np.flatnonzero(rng.random(frames) < rng.uniform(0, 0.6)) + start
        pieces = rng.choice(PIECES[3:], len(heard_frames)).tolist()
        heard = list(zip(pieces, heard_frames.tolist(), strict=True))
        prompt = " ".join(rng.choice(["<|en|>", "<|zh|>", "<|HAPPY|>", "<|BGM|>"], 3))
        results.append(result(heard, start=start, frames=frames, overlap=overlap, prompt=prompt))
        overlap = int(rng.integers(0, frames // 2 + 1)) * int(rng.integers(2))
        start += frames - overlap
    return results


@pytest.mark.parametrize("seed", range(100))
def test_any_hypotheses_give_words_in_order(seed: int) -> None:
    results = random_results(seed)
    assert_timed(merge(results, VOCABULARY, results[-1].end_sample))


@pytest.mark.parametrize("seed", range(100))
def test_what_was_told_meanwhile_is_never_taken_back(seed: int) -> None:
    results = random_results(seed)
    merger = Merger(VOCABULARY)
    told = "".join([merger.add(one) for one in results])
    transcript = merger.finish(results[-1].end_sample)
    assert transcript == merged(*results)
    assert transcript.text.startswith(told)


def test_a_chunk_is_told_as_soon_as_the_next_one_is_merged_with_it() -> None:
    merger = Merger(VOCABULARY)
    first = result([("▁the", 60), ("▁in", 82), ("form", 85)])
    second = result([("form", 85), ("ation", 88), ("▁is", 110)], start=70, overlap=30)
    third = result([(".", 175), ("今", 180)], start=170)
    fourth = result([("，", 272), ("天", 275)], start=270)
    told = [merger.add(one) for one in (first, second, third, fourth)]
    assert told == ["", "the information", " is", ".今"]
    assert merger.finish(fourth.end_sample).text == "the information is.今，天"
