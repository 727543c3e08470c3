"""Section 9: the decisions about a deadline, as pure functions of the state and the time."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import NOW, missing, refused

import ycluster
from ycluster import (
    ACTIONS,
    ArmedTimer,
    Clock,
    HowFar,
    Reaped,
    State,
    adjusted,
    anchored,
    decide,
    replace,
    retry_delay,
    stopped,
)

HOUR = 3600
DISARMED = ArmedTimer("none", "", 0)
STANDING = ArmedTimer("watcher", "watch", 0)

moments = st.floats(1.6e9, 2.2e9) | st.integers(1_600_000_000, 2_200_000_000).map(float)
budgets = st.integers(1, 400 * 24 * HOUR * 10**9) | st.integers(1, 400 * 24 * HOUR).map(
    lambda seconds: seconds * 10**9
)
actions = st.sampled_from(sorted(ACTIONS))


def state(**fields: object) -> State:
    return State(**{"name": "demo", "cache_dir": "/c", "lifetime": "8h", **fields})  # type: ignore[arg-type]


def at(now: float, *, stepped: float = 0, boot: str = "boot") -> Clock:
    """The clocks at a moment, the wall clock having been set by so many seconds since NOW."""
    return Clock(now + stepped, NOW - HOUR + stepped, boot)


def extended(state: State, by: int, clock: Clock, until: int | None = None) -> State:
    """Extended by so many nanoseconds, or until a moment."""
    how_far = HowFar(by=by) if until is None else HowFar(until=ycluster.format_time(until))
    return ycluster.moved(state, how_far, clock)


def exactly(state: State, until: int, clock: Clock) -> State:
    """With its deadline at a moment."""
    return ycluster.moved(state, HowFar(moment=until, exact=True), clock)


# --- decide


@pytest.mark.parametrize(
    "fields, late, do",
    [
        ({"expires_at": int(NOW)}, 0.0, "stop"),
        ({"expires_at": int(NOW)}, -0.001, "rearm"),
        ({"expires_at": int(NOW)}, -HOUR, "rearm"),
        ({"expires_at": int(NOW), "on_expiry": "pause"}, 10**9, "pause"),
        ({"expires_at": int(NOW), "on_expiry": "teardown"}, 0.5, "teardown"),
        ({"expires_at": int(NOW), "timers": (STANDING,)}, 1.0, "stop"),
        ({"expires_at": int(NOW), "timers": (DISARMED,)}, 10**9, "nothing"),
        ({"expires_at": None}, 0.0, "nothing"),
        ({"expires_at": None, "lifetime": ""}, 0.0, "nothing"),
        ({"expires_at": int(NOW), "lifetime": "0"}, 10**9, "nothing"),
    ],
    ids=[
        "due",
        "1 ms early",
        "1 h early",
        "pause",
        "teardown",
        "guarded",
        "disarmed",
        "not armed",
        "no budget",
        "no budget, and a deadline of before",
    ],
)
def test_decide(fields: dict[str, object], late: float, do: str) -> None:
    assert decide(state(**fields), at(NOW + late)).do == do


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"expires_at": int(NOW) + 5400}, "due in 1h 30m"),
        ({"expires_at": int(NOW) - 90}, "due since 1m 30s"),
        ({"expires_at": None}, "not armed"),
        ({"expires_at": None, "lifetime": "0"}, "it has no lifetime budget"),
        (
            {"timers": (DISARMED,)},
            "disarmed by hand; `ycluster lifetime arm --name demo` arms it again",
        ),
    ],
    ids=["early", "late", "not armed", "no budget", "disarmed"],
)
def test_decide_says_why(fields: dict[str, object], why: str) -> None:
    assert decide(state(**fields), at(NOW)).why == why


@given(moments, moments, actions)
def test_it_is_due_from_the_deadline_on_and_never_before(
    deadline: float, now: float, action: str
) -> None:
    due = decide(state(expires_at=int(deadline), on_expiry=action), at(now))
    assert due.do == (action if now >= int(deadline) else "rearm")


@given(moments, st.none() | moments.map(int), actions)
def test_a_disarmed_cluster_is_never_acted_on(
    now: float, deadline: int | None, action: str
) -> None:
    assert (
        decide(state(expires_at=deadline, timers=(DISARMED,), on_expiry=action), at(now)).do
        == "nothing"
    )


# --- warned


LATER = int(NOW) + 5 * HOUR


@pytest.mark.parametrize(
    "fields, wakes",
    [
        ({}, LATER - 600),
        ({"warn": "1500ms"}, LATER - 2),
        ({"warn": ""}, LATER),
        ({"warn": "0"}, LATER),
        ({"warn": "5h"}, LATER),
        ({"warn": "4h59m59s"}, int(NOW) + 1),
        ({"started_at": None, "warn": "5h"}, int(NOW)),
        ({"warned": LATER}, LATER),
        ({"warned": LATER - 1}, LATER - 600),
        ({"retry_at": LATER + 60}, LATER + 60),
        ({"timers": (DISARMED,)}, float("inf")),
        ({"expires_at": None}, float("inf")),
    ],
    ids=["10m", "rounded up", "unset", "off", "as long as the budget", "a second shorter", "a start unknown", "warned", "extended since",
         "being reaped", "disarmed", "no deadline"],
)  # fmt: skip
def test_it_wakes_to_warn_once_and_then_at_the_deadline(
    fields: dict[str, object], wakes: float
) -> None:
    one = state(**{"expires_at": LATER, "started_at": int(NOW), "warn": "10m", **fields})
    assert ycluster.wake_time(one) == wakes
    assert ycluster.time_of(one, "deadline") >= wakes


@given(st.integers(1, 12 * HOUR), st.integers(0, 13 * HOUR))
def test_a_warning_never_comes_in_the_place_of_the_expiry(lead: int, passed: int) -> None:
    one = state(expires_at=int(NOW) + 12 * HOUR, started_at=int(NOW), warn=f"{lead}s")
    decision = decide(one, at(NOW + passed)).do
    if passed >= 12 * HOUR:
        assert decision == "stop"
    else:
        assert decision == ("warn" if 12 * HOUR > lead >= 12 * HOUR - passed else "rearm")


def test_a_start_forgets_what_was_warned_of() -> None:
    assert anchored(state(warned=LATER), at(NOW)).warned is None


# --- anchored and stopped


@given(moments, budgets)
def test_the_budget_is_counted_from_the_start_and_rounded_up_to_a_second(
    now: float, nanoseconds: int
) -> None:
    deadline = anchored(state(lifetime=ycluster.format_duration(nanoseconds)), at(now)).expires_at
    exact = Fraction(now) + Fraction(nanoseconds, 10**9)
    assert deadline is not None and exact <= deadline < exact + 1


@given(moments, budgets)
def test_a_fresh_start_is_never_due_at_once(now: float, nanoseconds: int) -> None:
    assert (
        decide(anchored(state(lifetime=ycluster.format_duration(nanoseconds)), at(now)), at(now)).do
        == "rearm"
    )


@pytest.mark.parametrize("lifetime", ["", "0"])
def test_no_budget_gives_no_deadline(lifetime: str) -> None:
    fresh = anchored(state(lifetime=lifetime, expires_at=5), at(NOW))
    assert (fresh.expires_at, fresh.started_at, fresh.boot_id) == (None, int(NOW), "boot")
    assert decide(fresh, at(NOW + 10**9)).do == "nothing"


def test_a_start_ends_a_disarming_and_forgets_the_last_expiry() -> None:
    before = state(timers=(DISARMED,), reaped=Reaped(1, "stop", "at", "SIGTERM"))
    fresh = anchored(before, at(NOW))
    assert (fresh.timer, fresh.reaped, fresh.disarmed) == (None, None, False)


def test_a_start_keeps_the_old_timer_on_record_until_it_is_cancelled() -> None:
    assert anchored(state(timers=(STANDING,)), at(NOW)).timer == STANDING


@given(moments, st.sampled_from([(), (DISARMED,), (STANDING,)]), moments)
def test_a_stopped_cluster_is_never_acted_on(
    deadline: float, timers: tuple[ArmedTimer, ...], now: float
) -> None:
    over = stopped(state(expires_at=int(deadline), timers=timers))
    assert decide(over, at(now)).do == "nothing"
    assert stopped(over) == over


# --- extended


@pytest.mark.parametrize(
    "until, expires",
    [(LATER + 60, LATER + 60), (LATER, LATER), (LATER - 60, LATER), (int(NOW) - 60, LATER)],
    ids=["later", "the same", "earlier", "past"],
)
def test_extend_until_a_moment_is_never_a_shortening(until: int, expires: int) -> None:
    assert extended(state(expires_at=LATER), 0, at(NOW), until=until).expires_at == expires


def test_no_extension_passes_the_cap_and_the_error_names_it() -> None:
    one = state(expires_at=LATER, started_at=int(NOW), max_total="6h")
    assert extended(one, HOUR * 10**9, at(NOW)).expires_at == int(NOW) + 6 * HOUR
    with refused(ycluster.YclusterError, "maxTotal", "6h") as caught:
        extended(one, HOUR * 10**9 + 1, at(NOW))
    assert f"--until {ycluster.format_time(NOW + 6 * HOUR)} " in caught.value.hint
    with pytest.raises(ycluster.YclusterError, match="maxTotal"):
        extended(one, 0, at(NOW), until=int(NOW) + 7 * HOUR)
    assert extended(one, 0, at(NOW), until=int(NOW) + 6 * HOUR).expires_at == int(NOW) + 6 * HOUR


def test_the_cap_counts_from_the_start_however_late_the_extension() -> None:
    one = state(expires_at=LATER, started_at=int(NOW), max_total="6h")
    with pytest.raises(ycluster.YclusterError):
        extended(one, HOUR * 10**9 + 1, at(NOW + 4 * HOUR))


def test_a_cap_that_has_been_passed_already_shortens_nothing() -> None:
    one = state(expires_at=LATER, started_at=int(NOW), max_total="1h")
    assert extended(one, 0, at(NOW), until=int(NOW)).expires_at == LATER


def test_whoever_extends_is_not_warned_of_what_they_just_did() -> None:
    one = state(expires_at=LATER, started_at=int(NOW), warn="10m", warned=LATER)
    near, far = extended(one, 10**9, at(LATER - 60)), extended(one, HOUR * 10**9, at(LATER - 60))
    assert ycluster.wake_time(near) == LATER + 1 == near.warned
    assert ycluster.wake_time(far) == LATER + HOUR - 600


@given(moments.map(int), budgets, moments)
def test_extend_moves_the_deadline_strictly_later_and_beyond_now(
    deadline: int, more: int, now: float
) -> None:
    later = extended(state(expires_at=deadline), more, at(now)).expires_at
    assert later is not None and later > deadline and later > now
    assert later - max(deadline, int(now)) == -(-more // 10**9)


@given(moments.map(int), budgets, moments, st.sampled_from([(), (DISARMED,), (STANDING,)]))
def test_extend_changes_the_deadline_alone(
    deadline: int, more: int, now: float, timers: tuple[ArmedTimer, ...]
) -> None:
    before = state(expires_at=deadline, timers=timers)
    after = extended(before, more, at(now))
    assert (
        replace(after, expires_at=deadline, boot_id=before.boot_id, booted_at=before.booted_at)
        == before
    )


def test_extend_needs_a_deadline() -> None:
    with refused(ycluster.YclusterError, "deadline") as caught:
        extended(state(), HOUR * 10**9, at(NOW))
    assert caught.value.exit_code == 1
    assert missing(caught.value.hint, "`ycluster start --name demo`", "lifetime.maxRun") == []


@pytest.mark.parametrize(
    "nanoseconds",
    [ycluster.parse_duration("2000000h"), ycluster.parse_duration("876001h")],
    ids=["too long", "just too long"],
)
def test_extend_refuses(nanoseconds: int) -> None:
    with refused(ycluster.UsageError, "hundred years"):
        extended(state(expires_at=int(NOW)), nanoseconds, at(NOW))


def test_no_chain_of_extensions_passes_a_hundred_years() -> None:
    far = extended(state(expires_at=int(NOW)), ycluster.parse_duration("800000h"), at(NOW))
    with refused(ycluster.UsageError, "hundred years"):
        extended(far, ycluster.parse_duration("800000h"), at(NOW))


@given(
    moments.map(int),
    moments,
    st.integers(1, 10**8),
    st.sampled_from([(), (DISARMED,), (STANDING,)]),
)
def test_set_puts_the_deadline_exactly_there_and_arms_it(
    deadline: int, now: float, ahead: int, timers: tuple[ArmedTimer, ...]
) -> None:
    before = state(expires_at=deadline, timers=timers, retry_at=deadline + 60)
    after = exactly(before, int(now) + ahead, at(now))
    assert (after.expires_at, after.retry_at) == (int(now) + ahead, None)
    assert not after.disarmed and (before.disarmed or after.timers == timers)


@pytest.mark.parametrize(
    "deadline, moment, error",
    [
        (LATER, int(NOW), ycluster.UsageError),
        (LATER, int(NOW) - HOUR, ycluster.UsageError),
        (LATER, int(NOW) + 6 * HOUR + 1, ycluster.YclusterError),
        (None, LATER, ycluster.YclusterError),
    ],
    ids=["now", "past", "beyond maxTotal", "none is set"],
)
def test_a_deadline_that_cannot_be_set_is_refused(
    deadline: int | None, moment: int, error: type[Exception]
) -> None:
    one = state(expires_at=deadline, started_at=int(NOW), max_total="6h")
    with pytest.raises(error):
        exactly(one, moment, at(NOW))


# --- a clock that is set

steps = st.integers(-(10**9), 10**9)


@given(budgets, st.floats(0, 1e8), steps)
def test_the_budget_is_the_time_that_passed_whatever_the_clock_was_set_to(
    nanoseconds: int, passed: float, step: int
) -> None:
    begun = anchored(state(lifetime=ycluster.format_duration(nanoseconds)), at(NOW))
    clock = at(NOW + passed, stepped=step)
    due = decide(adjusted(begun, clock), clock).do == "stop"
    off = abs(step) if abs(step) < ycluster.CLOCK_STEP else 0
    if passed >= nanoseconds / 10**9 + off + 2:
        assert due, "it runs longer because of the clock"
    if passed < nanoseconds / 10**9 - off - 2:
        assert not due, "it is reaped on the word of a clock that was set"


@given(steps, steps)
def test_a_clock_that_is_set_twice_is_followed_twice(one: int, other: int) -> None:
    begun = anchored(state(), at(NOW))
    once = adjusted(begun, at(NOW, stepped=one))
    assert adjusted(once, at(NOW, stepped=one)) == once
    after, meant = adjusted(once, at(NOW, stepped=other)), adjusted(begun, at(NOW, stepped=other))
    assert after.expires_at is not None and meant.expires_at is not None
    assert abs(after.expires_at - meant.expires_at) < 2 * ycluster.CLOCK_STEP


def test_every_moment_of_the_state_moves_along() -> None:
    moments = {"retry_at": int(NOW) + 60, "warned": LATER, "failed": LATER}
    begun = replace(anchored(state(), at(NOW)), **moments)
    moved = adjusted(begun, at(NOW, stepped=-5 * HOUR))
    for name in ("expires_at", "started_at", *moments):
        assert getattr(moved, name) == getattr(begun, name) - 5 * HOUR, name


def test_a_clock_at_the_beginning_or_the_end_of_time_gives_a_state_that_can_be_saved() -> None:
    begun = replace(anchored(state(), at(NOW)), retry_at=5)
    for step in (-NOW, 5e10):
        text = ycluster.encode_state(
            replace(adjusted(begun, at(NOW, stepped=step)), cache_dir="/c")
        )
        ycluster.decode_state(text, ycluster.Path("/c/demo.json"))


def test_a_clock_below_the_uptime_gives_a_state_that_is_read_and_followed(cache: Path) -> None:
    """A dead battery: the host has been up for longer than since 1970. (21.1.3)"""
    reset = ycluster.Clock(now=600.0, booted=600.0 - 86400, boot_id="boot-1")
    begun = anchored(state(cache_dir=str(cache), lifetime="1h"), reset)
    ycluster.save_state(begun)
    read = ycluster.load_state(begun.files)
    assert (read.booted_at, read.expires_at) == (600 - 86400, 600 + HOUR)
    assert adjusted(read, reset) == read
    # Then somebody sets the clock: the deadline is as far away as it was.
    right = replace(reset, now=NOW, booted=NOW - 86400)
    moved = adjusted(read, right)
    assert moved.expires_at == NOW + HOUR and adjusted(moved, right) == moved
    back = adjusted(moved, reset)
    assert (back.booted_at, back.expires_at) == (read.booted_at, read.expires_at)


@pytest.mark.parametrize("step", [0, 1, -29, 29])
def test_what_ntp_does_all_day_moves_no_deadline(step: int) -> None:
    begun = anchored(state(), at(NOW))
    assert adjusted(begun, at(NOW, stepped=step)) == begun


@pytest.mark.parametrize(
    "action, done", [("teardown", "stop"), ("stop", "stop"), ("pause", "pause")]
)
def test_nothing_is_torn_down_after_a_reboot_by_a_clock_that_nothing_confirms(
    action: str, done: str
) -> None:
    begun = anchored(state(on_expiry=action), at(NOW))
    later = at(NOW + 9 * HOUR, stepped=10**9, boot="another")
    assert adjusted(begun, later) == begun
    decision = decide(begun, later)
    assert decision.do == done and ("disk is kept" in decision.why) == (action == "teardown")


def test_a_sidecar_of_the_sibling_tells_nothing_of_the_clock_and_is_taken_at_its_word() -> None:
    theirs = state(on_expiry="teardown", expires_at=int(NOW))
    assert adjusted(theirs, at(NOW, stepped=10**6)) == theirs
    assert decide(theirs, at(NOW)).do == "teardown"


def test_an_extension_is_the_word_of_somebody_who_knows_what_time_it_is() -> None:
    begun = anchored(state(on_expiry="teardown"), at(NOW))
    after = extended(begun, 10**9, at(NOW, boot="another"))
    assert decide(after, at(NOW + 10**6, boot="another")).do == "teardown"


# --- retry_delay


def test_a_start_an_extension_and_a_stop_end_a_retry() -> None:
    """What was to be tried again later must put off neither the new deadline nor its warning."""
    now = int(NOW)
    begun = state(lifetime="1m", warn="10s", started_at=now - HOUR)
    failing = replace(begun, expires_at=now, retry_at=now + 900)
    for fresh in (anchored(failing, at(NOW)), extended(failing, 60 * 10**9, at(NOW))):
        assert (ycluster.time_of(fresh, "deadline"), ycluster.wake_time(fresh)) == (
            now + 60,
            now + 50,
        )
    assert stopped(failing).retry_at is None


@pytest.mark.parametrize(
    "late, delay", [(0, 60), (119, 60), (121, 60.5), (600, 300), (1800, 900), (10**9, 900)]
)
def test_a_failed_action_is_tried_again_after_half_of_its_lateness(
    late: float, delay: float
) -> None:
    assert retry_delay(late) == delay


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_retries_come_within_15_minutes_and_never_more_often_as_time_passes(
    one: float, other: float
) -> None:
    assert 60 <= retry_delay(min(one, other)) <= retry_delay(max(one, other)) <= 900


@pytest.mark.parametrize("none", ["", "0"])
def test_a_budget_that_is_none_has_no_agenda(none: str) -> None:
    """Whatever deadline is left. (20.16)"""
    assert ycluster.agenda(state(expires_at=int(NOW), lifetime=none, warn="10m")) == []


# --- a budget for one run


def test_a_budget_for_one_run_is_gone_with_the_next_start() -> None:
    clock = Clock(now=NOW, boot_id="b", booted=9.0)

    def started(before: State, run_budget: str) -> State:
        return anchored(ycluster.for_one_run(before, run_budget), clock)

    one = started(state(lifetime="8h"), "2h")
    assert (one.max_run, one.lifetime, one.expires_at) == ("2h", "8h", int(NOW) + 2 * HOUR)
    assert started(one, "").expires_at == int(NOW) + 8 * HOUR
    none = started(state(lifetime="8h"), "0")
    assert none.expires_at is None and decide(none, clock).do == "nothing"
    assert started(state(lifetime=""), "2h").expires_at == int(NOW) + 2 * HOUR


def test_a_budget_for_one_run_counts_from_the_start_of_a_vm_that_runs() -> None:
    clock = Clock(now=NOW + HOUR, boot_id="b", booted=9.0)
    runs = state(lifetime="8h", started_at=int(NOW), expires_at=int(NOW) + 8 * HOUR)
    shorter = ycluster.recounted_for_one_run(runs, "2h", clock)
    assert shorter.expires_at == int(NOW) + 2 * HOUR
    used_up = ycluster.recounted_for_one_run(runs, "30m", clock)
    assert used_up.expires_at == int(clock.now) + HOUR // 2 and used_up.max_run == "30m"
    assert ycluster.recounted_for_one_run(runs, "0", clock).expires_at is None


@pytest.mark.parametrize("most, given_, over", [("4h", "5h", True), ("4h", "0", True), ("4h", "4h", False), ("4h", "", False), ("", "500h", False)])  # fmt: skip
def test_a_budget_for_one_run_is_within_max_total(most: str, given_: str, over: bool) -> None:
    limited = state(lifetime="2h", max_total=most)
    if over:
        with refused(ycluster.UsageError, given_, most):
            ycluster.for_one_run(limited, given_)
    else:
        assert ycluster.for_one_run(limited, given_).run_budget == given_
