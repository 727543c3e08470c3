"""Section 5: Go's durations, and times. The tables follow the ones in Go's time_test.go."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ycluster import (
    format_duration,
    format_time,
    in_words,
    local_time,
    parse_duration,
    parse_time,
    parse_until,
)

NS, US, MS, S = 1, 10**3, 10**6, 10**9
M, H = 60 * S, 3600 * S
MAX = (1 << 63) - 1


@pytest.mark.parametrize(
    "text, nanoseconds",
    [
        ("0", 0), ("-0", 0), ("+0", 0), ("0s", 0), ("-0s", 0),
        ("5s", 5 * S), ("30s", 30 * S), ("1478s", 1478 * S), ("-5s", -5 * S), ("+5s", 5 * S), ("0005s", 5 * S),
        ("5.0s", 5 * S), ("5.6s", 5600 * MS), ("5.s", 5 * S), (".5s", 500 * MS), ("-.5s", -500 * MS), ("1.00s", S),
        ("1.004s", S + 4 * MS), ("1.0040s", S + 4 * MS), ("100.00100s", 100 * S + MS),
        ("10ns", 10), ("11us", 11 * US), ("12\u00b5s", 12 * US), ("12\u03bcs", 12 * US), ("13ms", 13 * MS),
        ("14s", 14 * S), ("15m", 15 * M), ("16h", 16 * H),
        ("3h30m", 3 * H + 30 * M), ("10.5s4m", 4 * M + 10 * S + 500 * MS), ("-2m3.4s", -(2 * M + 3 * S + 400 * MS)),
        ("1h2m3s4ms5us6ns", H + 2 * M + 3 * S + 4 * MS + 5 * US + 6), ("39h9m14.425s", 39 * H + 9 * M + 14 * S + 425 * MS),
        ("1h1h", 2 * H), ("52763797000ns", 52763797000), ("0.3333333333333333333h", 20 * M),
        ("9007199254740993ns", (1 << 53) + 1), ("9223372036854775807ns", MAX), ("9223372036854775.807us", MAX),
        ("9223372036s854ms775us807ns", MAX), ("-9223372036854775808ns", -MAX - 1), ("-9223372036854775.808us", -MAX - 1),
        ("-9223372036s854ms775us808ns", -MAX - 1), ("-2562047h47m16.854775808s", -MAX - 1),
        ("0.100000000000000000000h", 6 * M), ("0.830103483285477580700h", 49 * M + 48 * S + 372539827),
        ("0.9223372036854775807s", 922337203), ("0.0000000001s", 0),
    ],
)  # fmt: skip
def test_a_duration_is_read_as_go_reads_it(text: str, nanoseconds: int) -> None:
    assert parse_duration(text) == nanoseconds


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "invalid"), ("-", "invalid"), ("+", "invalid"), ("s", "invalid"), (".", "invalid"), ("-.", "invalid"),
        (".s", "invalid"), ("+.s", "invalid"), ("--5s", "invalid"), ("5s-3s", 'unknown unit "s-"'), (" 5s", "invalid"),
        ("3", "missing unit"), ("1h30", "missing unit"), ("1.5", "missing unit"), ("00", "missing unit"),
        ("1d", 'unknown unit "d"'), ("1w", 'unknown unit "w"'), ("1H", 'unknown unit "H"'), ("5s ", 'unknown unit "s "'),
        ("8 hours", 'unknown unit " hours"'), ("1e3s", 'unknown unit "e"'), ("1_000s", 'unknown unit "_"'),
        ("1,5h", 'unknown unit ","'), ("1:30h", 'unknown unit ":"'), ("infh", "invalid"), ("\u0665s", "invalid"), ("\uff15s", "invalid"),
        ("9223372036854775810ns", "invalid"), ("9223372036854775808ns", "invalid"), ("-9223372036854775809ns", "invalid"),
        ("9223372036854776us", "invalid"), ("3000000h", "invalid"), ("9223372036854ms775us808ns", "invalid"),
        ("9223372036s854ms775us808ns", "invalid"), ("9" * 5000 + "s", "invalid"), ("-" + "9" * 30 + "h", "invalid"),
        ("9999999999999999999", "invalid"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)  # fmt: skip
def test_what_go_refuses_is_refused_in_its_words(text: str, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert str(caught.value) == f'{says} {"in " if says != "invalid" else ""}duration "{text}"'


@pytest.mark.parametrize(
    "nanoseconds, text",
    [
        (0, "0s"), (1, "1ns"), (1100, "1.1\u00b5s"), (2200 * US, "2.2ms"), (3300 * MS, "3.3s"), (4 * M + 5 * S, "4m5s"),
        (4 * M + 5001 * MS, "4m5.001s"), (5 * H + 6 * M + 7001 * MS, "5h6m7.001s"), (8 * M + 1, "8m0.000000001s"),
        (MAX, "2562047h47m16.854775807s"), (-MAX - 1, "-2562047h47m16.854775808s"), (-1, "-1ns"), (-1500 * MS, "-1.5s"),
        (999, "999ns"), (999999, "999.999\u00b5s"), (S - 1, "999.999999ms"), (S, "1s"), (M, "1m0s"), (H, "1h0m0s"),
        (8 * H, "8h0m0s"), (90 * M, "1h30m0s"),
    ],
)  # fmt: skip
def test_a_duration_is_written_as_go_writes_it(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@given(st.integers(-MAX - 1, MAX))
def test_every_int64_survives_a_round_trip(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


@given(st.text() | st.text("0123456789.+-hmsnu\u00b5 ", max_size=30))
def test_any_text_is_an_int64_or_a_value_error(text: str) -> None:
    try:
        found = parse_duration(text)
    except ValueError as error:
        assert "duration" in str(error)
    else:
        assert -MAX - 1 <= found <= MAX


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0, "0s"), (0.9, "0s"), (1, "1s"), (45, "45s"), (59.9, "59s"), (60, "1m"), (90, "1m 30s"), (3600, "1h"), (3605, "1h 5s"),
        (11520, "3h 12m"), (11521, "3h 12m"), (86400, "1d"), (187200, "2d 4h"), (86400 * 400 + 1, "400d 1s"), (-90, "1m 30s"),
    ],
)  # fmt: skip
def test_a_span_in_words_has_two_units_at_most(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("1970-01-01T00:00:00Z", 0), ("2026-11-22T11:00:00Z", 1795345200), ("2026-11-22T12:00:00+01:00", 1795345200),
        ("2026-11-22T05:30:00-05:30", 1795345200), ("2026-11-22t11:00:00z", 1795345200), ("2026-11-22 11:00:00Z", 1795345200),
        ("2026-11-22T11:00:00.000Z", 1795345200), ("2026-11-22T11:00:00.000000001Z", 1795345201),
        ("2026-11-22T12:00:00.999999999+01:00", 1795345201), ("2024-02-29T00:00:00Z", 1709164800),
        ("1969-12-31T23:59:59.5Z", 0), ("2026-11-22T11:00:00-00:00", 1795345200),
    ],
)  # fmt: skip
def test_a_time_is_read_with_its_offset_and_a_fraction_rounded_up(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2026-11-22", "2026-11-22T11:00Z", "2026-11-22T11:00:00", "2026-11-22T11:00:00+0100", "2026-11-22T11:00:00+01",
        "2026-02-29T11:00:00Z", "2026-13-01T11:00:00Z", "2026-11-22T24:00:00Z", "2026-11-22T11:60:00Z", "2026-11-22T11:00:61Z", "2026-11-22T11:00:00+05:60",
        "2026-11-22T11:00:00.Z", "2026-11-22T11:00:00,5Z", "2026-11-22T11:00:00Z ", "2026-11-22T11:00:00Z\n", "0000-01-01T00:00:00Z",
        "26-11-22T11:00:00Z", "\u0662026-11-22T11:00:00Z", "2026-11-22T11:00:00+99:99", "1795345200",
    ],
)  # fmt: skip
def test_what_is_no_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 3339|no such time|is before"):
        parse_time(text)


@given(st.integers(0, parse_time("2999-12-31T23:59:59Z")))
def test_every_time_survives_a_round_trip(seconds: int) -> None:
    assert parse_time(format_time(seconds)) == seconds


@given(st.integers(10**5, parse_time("2999-12-30T00:00:00Z")), st.integers(-23 * 60, 23 * 60))
def test_an_offset_changes_the_clock_and_not_the_moment(seconds: int, offset: int) -> None:
    hours, minutes = divmod(abs(offset), 60)
    local = (
        format_time(seconds + offset * 60)[:-1]
        + f"{'-' if offset < 0 else '+'}{hours:02}:{minutes:02}"
    )
    assert parse_time(local) == seconds


@pytest.fixture
def cet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host in the zone of Stockholm."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_a_time_for_people_is_in_the_hosts_zone(cet: None) -> None:
    assert local_time(1795345200) == "2026-11-22 12:00:00 CET"


@pytest.mark.parametrize(
    "text, now, then",
    [
        ("18:00", "2026-11-22T11:00:00Z", "2026-11-22T17:00:00Z"),
        ("12:01", "2026-11-22T11:00:00Z", "2026-11-22T11:01:00Z"),
        ("12:00", "2026-11-22T11:00:00Z", "2026-11-23T11:00:00Z"),
        ("9:30", "2026-11-22T11:00:00Z", "2026-11-23T08:30:00Z"),
        ("00:00", "2026-12-31T11:00:00Z", "2026-12-31T23:00:00Z"),
        ("12:00", "2026-10-24T11:00:00Z", "2026-10-25T11:00:00Z"),
        ("12:00", "2026-03-28T11:30:00Z", "2026-03-29T10:00:00Z"),
        ("2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z", "2026-11-22T10:00:00Z"),
        ("6pm", "2026-11-22T11:00:00Z", "2026-11-22T17:00:00Z"),
        ("6:30 PM", "2026-11-22T11:00:00Z", "2026-11-22T17:30:00Z"),
        ("12am", "2026-11-22T11:00:00Z", "2026-11-22T23:00:00Z"),
        ("12pm", "2026-11-22T10:00:00Z", "2026-11-22T11:00:00Z"),
        ("2026-11-22 18:00", "2026-11-22T11:00:00Z", "2026-11-22T17:00:00Z"),
        ("2027-07-01 18:00", "2026-11-22T11:00:00Z", "2027-07-01T16:00:00Z"),
    ],
    ids=[
        "today",
        "in a minute",
        "now is tomorrow",
        "tomorrow",
        "midnight",
        "winter begins",
        "summer begins",
        "absolute",
        "afternoon",
        "half past",
        "midnight by its other name",
        "noon",
        "of a day",
        "of a day in summer",
    ],
)
def test_until_is_the_next_time_at_which_a_clock_here_shows_it(
    cet: None, text: str, now: str, then: str
) -> None:
    assert format_time(parse_until(text, parse_time(now))) == then


@pytest.mark.parametrize(
    "text",
    [
        "",
        "24:00",
        "12:60",
        "18",
        "18:0",
        "13pm",
        "0am",
        "2026-02-30 18:00",
        "2026-11-22 25:00",
        "tomorrow",
        "18:00:00",
        "\u0661\u0668:00",
    ],
)
def test_until_refuses_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="RFC 3339|no such time"):
        parse_until(text, 1795345200)
