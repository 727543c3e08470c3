"""Section 9: the decisions about a deadline, as pure functions of the state and the time."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import NOW

import ycluster
from ycluster import ACTIONS, ArmedTimer, Reaped, State, anchored, decide, extended, retry_delay, stopped

HOUR = 3600
DISARMED = ArmedTimer("none", "", 0)
STANDING = ArmedTimer("watcher", "watch", 0)

moments = st.floats(1.6e9, 2.2e9) | st.integers(1_600_000_000, 2_200_000_000).map(float)
budgets = st.integers(1, 400 * 24 * HOUR * 10**9) | st.integers(1, 400 * 24 * HOUR).map(lambda seconds: seconds * 10**9)
actions = st.sampled_from(ACTIONS)


def state(**fields: object) -> State:
    return State(**{"name": "demo", "cache_dir": "/c", "lifetime": "8h", **fields})  # type: ignore[arg-type]


# --- decide


@pytest.mark.parametrize(
    "fields, late, do",
    [
        ({"expires_at": int(NOW)}, 0.0, "stop"),
        ({"expires_at": int(NOW)}, -0.001, "rearm"),
        ({"expires_at": int(NOW)}, -HOUR, "rearm"),
        ({"expires_at": int(NOW), "on_expiry": "pause"}, 10**9, "pause"),
        ({"expires_at": int(NOW), "on_expiry": "teardown"}, 0.5, "teardown"),
        ({"expires_at": int(NOW), "timer": STANDING}, 1.0, "stop"),
        ({"expires_at": int(NOW), "timer": DISARMED}, 10**9, "nothing"),
        ({"expires_at": None}, 0.0, "nothing"),
        ({"expires_at": None, "lifetime": ""}, 0.0, "nothing"),
    ],
    ids=["due", "1 ms early", "1 h early", "pause", "teardown", "guarded", "disarmed", "not armed", "no budget"],
)
def test_decide(fields: dict[str, object], late: float, do: str) -> None:
    assert decide(state(**fields), NOW + late).do == do


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"expires_at": int(NOW) + 5400}, "due in 1h 30m"),
        ({"expires_at": int(NOW) - 90}, "due since 1m 30s"),
        ({"expires_at": None}, "not armed"),
        ({"expires_at": None, "lifetime": "0"}, "it has no lifetime budget"),
        ({"timer": DISARMED}, "disarmed by hand; `ycluster lifetime arm` arms it again"),
    ],
    ids=["early", "late", "not armed", "no budget", "disarmed"],
)
def test_decide_says_why(fields: dict[str, object], why: str) -> None:
    assert decide(state(**fields), NOW).why == why


@given(moments, moments, actions)
def test_it_is_due_from_the_deadline_on_and_never_before(deadline: float, now: float, action: str) -> None:
    due = decide(state(expires_at=int(deadline), on_expiry=action), now)
    assert due.do == (action if now >= int(deadline) else "rearm")


@given(moments, st.none() | moments.map(int), actions)
def test_a_disarmed_cluster_is_never_acted_on(now: float, deadline: int | None, action: str) -> None:
    assert decide(state(expires_at=deadline, timer=DISARMED, on_expiry=action), now).do == "nothing"


# --- anchored and stopped


@given(moments, budgets)
def test_the_budget_is_counted_from_the_start_and_rounded_up_to_a_second(now: float, nanoseconds: int) -> None:
    deadline = anchored(state(lifetime=ycluster.format_duration(nanoseconds)), now, "boot").expires_at
    exact = Fraction(now) + Fraction(nanoseconds, 10**9)
    assert deadline is not None and exact <= deadline < exact + 1


@given(moments, budgets)
def test_a_fresh_start_is_never_due_at_once(now: float, nanoseconds: int) -> None:
    assert decide(anchored(state(lifetime=ycluster.format_duration(nanoseconds)), now, ""), now).do == "rearm"


@pytest.mark.parametrize("lifetime", ["", "0"])
def test_no_budget_gives_no_deadline(lifetime: str) -> None:
    fresh = anchored(state(lifetime=lifetime, expires_at=5), NOW, "boot")
    assert (fresh.expires_at, fresh.started_at, fresh.boot_id) == (None, int(NOW), "boot")
    assert decide(fresh, NOW + 10**9).do == "nothing"


def test_a_start_ends_a_disarming_and_forgets_the_last_expiry() -> None:
    before = state(timer=DISARMED, reaped=Reaped(1, "stop", "at", "SIGTERM"))
    fresh = anchored(before, NOW, "")
    assert (fresh.timer, fresh.reaped, fresh.disarmed) == (None, None, False)


def test_a_start_keeps_the_old_timer_on_record_until_it_is_cancelled() -> None:
    assert anchored(state(timer=STANDING), NOW, "").timer == STANDING


@given(moments, st.sampled_from([None, DISARMED, STANDING]), moments)
def test_a_stopped_cluster_is_never_acted_on(deadline: float, timer: ArmedTimer | None, now: float) -> None:
    over = stopped(state(expires_at=int(deadline), timer=timer))
    assert decide(over, now).do == "nothing"
    assert stopped(over) == over


# --- extended


@given(moments.map(int), budgets, moments)
def test_extend_moves_the_deadline_strictly_later_and_beyond_now(deadline: int, more: int, now: float) -> None:
    later = extended(state(expires_at=deadline), more, now).expires_at
    assert later is not None and later > deadline and later > now
    assert later - max(deadline, int(now)) == -(-more // 10**9)


@given(moments.map(int), budgets, moments, st.sampled_from([None, DISARMED, STANDING]))
def test_extend_changes_the_deadline_alone(deadline: int, more: int, now: float, timer: ArmedTimer | None) -> None:
    before = state(expires_at=deadline, timer=timer)
    assert replace(extended(before, more, now), expires_at=deadline) == before


def test_extend_needs_a_deadline() -> None:
    with pytest.raises(ycluster.YclusterError, match="no deadline is counting") as caught:
        extended(state(), HOUR * 10**9, NOW)
    assert caught.value.exit_code == 1 and "start" in caught.value.hint


@pytest.mark.parametrize(
    "nanoseconds, message",
    [(ycluster.parse_duration("2000000h"), "a hundred years"), (ycluster.parse_duration("876001h"), "a hundred years")],
    ids=["too long", "just too long"],
)
def test_extend_refuses(nanoseconds: int, message: str) -> None:
    with pytest.raises(ycluster.UsageError, match=message):
        extended(state(expires_at=int(NOW)), nanoseconds, NOW)


def test_no_chain_of_extensions_passes_a_hundred_years() -> None:
    far = extended(state(expires_at=int(NOW)), ycluster.parse_duration("800000h"), NOW)
    with pytest.raises(ycluster.UsageError, match="a hundred years"):
        extended(far, ycluster.parse_duration("800000h"), NOW)


# --- retry_delay


@pytest.mark.parametrize("late, delay", [(0, 60), (119, 60), (121, 60.5), (600, 300), (1800, 900), (10**9, 900)])
def test_a_failed_action_is_tried_again_after_half_of_its_lateness(late: float, delay: float) -> None:
    assert retry_delay(late) == delay


@given(st.floats(0, 1e9), st.floats(0, 1e9))
def test_retries_come_within_15_minutes_and_never_more_often_as_time_passes(one: float, other: float) -> None:
    assert 60 <= retry_delay(min(one, other)) <= retry_delay(max(one, other)) <= 900
