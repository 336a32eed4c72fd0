from __future__ import annotations

import io
from os import SEEK_CUR, SEEK_END

import pytest

from sensevoice_service.window import Window


@pytest.fixture
def window() -> Window:
    return Window(io.BytesIO(b"tag:0123456789"), start_byte=4)


def test_a_window_shows_the_file_from_its_start(window: Window) -> None:
    assert window.size_bytes == 10
    assert window.read(3) == b"012"
    assert window.tell() == 3


def test_seeking_counts_from_the_start_of_the_window(window: Window) -> None:
    assert window.seek(5) == 5
    assert window.seek(2, SEEK_CUR) == 7
    assert window.read(1) == b"7"
    assert window.seek(-1, SEEK_END) == 9
    assert window.read(5) == b"9"


@pytest.mark.parametrize(("target", "place"), [(-3, 0), (2**62, 10)])
def test_seeking_stops_at_the_border(window: Window, target: int, place: int) -> None:
    assert window.seek(target) == place == window.tell()


def test_peeking_past_the_end_gives_what_is_there(window: Window) -> None:
    assert window.peek(8, 100) == b"89"
    assert window.peek(1000, 4) == b""


def test_a_window_behind_the_end_is_empty() -> None:
    window = Window(io.BytesIO(b"tag"), start_byte=100)
    assert window.size_bytes == 0
    assert window.read(10) == b""


def test_a_window_has_no_name_and_cannot_close(window: Window) -> None:
    assert not hasattr(window, "name")
    assert not hasattr(window, "close")
