"""Forms that are broken, endless, or named to be taken for something else."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.hostile import GOOD, MIB, Body, form, part, post, until

if TYPE_CHECKING:
    from tests.hostile import Victim

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc")

END = b"--edge--\r\n"
FILE = part(GOOD[0], 'name="files"; filename="a.wav"')


@pytest.mark.parametrize(
    "body",
    [
        Body(form(GOOD[0]).content, "multipart/form-data"),
        Body(form(GOOD[0]).content, "multipart/form-data; boundary="),
        Body(form(GOOD[0]).content, "multipart/form-data; boundary=other"),
        Body(form(GOOD[0]).content[:-9]),
        Body(form(GOOD[0]).content[:1000]),
        Body(form(GOOD[0]).content[:60]),
        Body(b""),
        Body(b"\r\n" * 1000),
        Body(b"--edge\r\n"),
        Body(b"--edge\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END),
        Body(b"--edge\r\nno header at all\r\n\r\nx\r\n" + END),
        Body(b"--edge\r\n: nameless\r\n\r\nx\r\n" + END),
        Body(b"\x00\xff" * 5000),
    ],
)
def test_a_form_that_is_none_is_refused(victim: Victim, body: Body) -> None:
    with victim.unharmed():
        status, answer = post(victim.port, body)
    assert (status, answer["error"]["code"]) == (400, "malformed_body")


@pytest.mark.parametrize(
    "body",
    [
        form(*[GOOD[0]] * 5),
        form(*[b"x"] * 1000),
        form(GOOD[0], **{f"field{number}": "x" for number in range(100)}),
    ],
    ids=["a file too many", "a thousand files", "a hundred fields"],
)
def test_more_parts_than_allowed_are_refused(victim: Victim, body: Body) -> None:
    with victim.unharmed():
        status, answer = post(victim.port, body)
    assert (status, answer["error"]["code"]) == (400, "malformed_body")


@pytest.mark.parametrize("field", ["keys", "lang", "of-no-meaning"])
def test_a_text_field_of_2_mib_is_refused(victim: Victim, field: str) -> None:
    with victim.unharmed():
        status, answer = post(victim.port, form(GOOD[0], **{field: "x" * (2 * MIB)}))
    assert (status, answer["error"]["code"]) == (400, "malformed_body")


PUNYCODE = ("\U00010000" + "a").encode("punycode") + b"a" * 65_000  # quadratic to decode


@pytest.mark.parametrize(
    ("text", "n_fields", "charset", "expected"),
    [
        (b"," * 65_536, 2, "utf-8", 200),
        (b"," * 65_536, 31, "utf-8", 400),
        (b",".join([b"one"] * 16_000), 2, "utf-8", 200),
        (PUNYCODE, 2, "punycode", 400),
    ],
    ids=["commas", "commas without end", "words", "punycode"],
)
def test_as_much_text_as_a_form_holds_costs_less_than_a_second(
    victim: Victim, text: bytes, n_fields: int, charset: str, expected: int
) -> None:
    fields = part(text, 'name="hotwords"') * n_fields
    with victim.unharmed():
        before = victim.process.cpu_times()
        kind = f"multipart/form-data; boundary=edge; charset={charset}"
        status, _ = post(victim.port, Body(FILE + fields + END, kind))
        after = victim.process.cpu_times()
    assert status == expected
    assert after.user + after.system - before.user - before.system < 1.0


@pytest.mark.parametrize(
    ("filler", "expected"),
    [
        (b"x" * 10 * MIB, {"preamble": 400, "epilogue": 200}),
        (b"\r\n" * 5 * MIB, {"preamble": 200, "epilogue": 200}),
        (b"--edg\r\n" * (10 * MIB // 7), {"preamble": 400, "epilogue": 200}),
    ],
    ids=["bytes", "line ends", "near boundaries"],
)
@pytest.mark.parametrize("place", ["preamble", "epilogue"])
def test_ten_megabytes_around_a_form_cost_less_than_a_second(
    victim: Victim, place: str, filler: bytes, expected: dict[str, int]
) -> None:
    content = filler + b"\r\n" + FILE + END if place == "preamble" else FILE + END + filler
    with victim.unharmed():
        before = victim.process.cpu_times()
        status, _ = post(victim.port, Body(content))
        after = victim.process.cpu_times()
    assert status == expected[place]
    assert after.user + after.system - before.user - before.system < 1.0


@pytest.mark.parametrize(
    "header",
    [b"X-%d: y", b"Content-Disposition: form-data; name=f%d", b"X: " + b"y" * 5000 + b"%d"],
)
def test_ten_thousand_headers_of_a_part_are_refused(victim: Victim, header: bytes) -> None:
    headers = b"\r\n".join(header % number for number in range(10_000))
    content = b"--edge\r\n" + headers + b"\r\n\r\nx\r\n" + END
    with victim.unharmed():
        status, answer = post(victim.port, Body(content[: 30 * MIB]))
    assert (status, answer["error"]["code"]) == (400, "malformed_body")


NAMES = {
    "upwards": 'filename="../../../../etc/passwd"',
    "absolute": 'filename="/etc/passwd"',
    "windows": 'filename="C:\\\\Windows\\\\win.ini"',
    "line ends": 'filename="a%0d%0aSet-Cookie: b=c.wav"',
    "raw escape": 'filename="a\x1b[31mred\x1b]0;title\x07.wav"',
    "nul": 'filename="a\x00b.wav"',
    "long": f'filename="{"n" * 3_900}.wav"',
    "smuggled": "filename=\"a.wav\"; filename*=UTF-8''..%2f..%2fetc%2fpasswd",
    "twice": 'filename="a.wav"; filename="../b.wav"',
    "latin": 'filename="\xe9\x9f\xb3\xc2\x85.wav"',
    "empty": 'filename=""',
    "format": 'filename="%s%n{0}${HOME}`id`.wav"',
}


@pytest.mark.parametrize("name", NAMES)
def test_a_file_name_is_never_a_path_nor_two_lines_of_the_log(victim: Victim, name: str) -> None:
    content = part(GOOD[0], f'name="files"; {NAMES[name]}') + END
    n_lines = len(victim.server.lines)
    with victim.unharmed():
        status, answer = post(victim.port, Body(content))
        assert status == 200, answer
        key = answer["details"][0]["key"]
    assert not set(key) & set("/\\\r\n\x00\x1b\x85")
    assert len(key) <= 200
    assert answer["results"] == victim.texts[:1]
    until(lambda: len(victim.server.lines) > n_lines)
    for line in victim.server.lines[n_lines:]:
        assert re.match(r"\d{4}-\d\d-\d\dT\S+ INFO sensevoice_service\.requests ", line)
        assert not any(ord(character) < 32 for character in line)


def test_a_name_in_the_other_way_of_writing_it_makes_no_file(victim: Victim) -> None:
    content = part(GOOD[0], "name=\"files\"; filename*=UTF-8''%0d%0aevil%00.wav") + END
    with victim.unharmed():
        status, _ = post(victim.port, Body(content))
    assert status == 422


def test_a_name_of_10_kb_is_refused_or_cut(victim: Victim) -> None:
    content = part(GOOD[0], f'name="files"; filename="{"n" * 10_000}.wav"') + END
    with victim.unharmed():
        status, _ = post(victim.port, Body(content))
    assert status in (200, 400)
