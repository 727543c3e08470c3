"""A cluster that nobody uses expires, and one that is used does not: looks, what they measure, and what follows."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from unit_support import (
    NOW,
    USED,
    USERNET,
    Cli,
    Clocked,
    Live,
    Memory,
    Processes,
    held,
    made,
    missing,
    stand_in,
    told,
)

import ycluster
from ycluster import (
    Clock,
    Decision,
    Files,
    Host,
    Idle,
    Look,
    State,
    YclusterError,
    after_look,
    agenda,
    anchored,
    decide,
    replace,
)

MINUTE, HOUR = 60, 3600


def state(**fields: object) -> State:
    """Of a cluster that is looked at every five minutes."""
    values = {"name": "demo", "cache_dir": "/c", "max_idle": "30m", **fields}
    return State(**values)  # type: ignore[arg-type]


def at(seconds: float, *, slept: float = 0) -> Clock:
    """The clocks so long after the start."""
    return Clock(NOW + seconds, NOW - HOUR, "boot", slept)


def looked(
    state: State,
    seconds: float,
    *,
    holds: bool = False,
    connections: int | None = 0,
    cpu: float | None = 0.0,
    slept: float = 0,
) -> State:
    """After a look so long after the start."""
    return after_look(state, Look(holds, connections, cpu), at(seconds, slept=slept))


def idle_of(state: State) -> Idle:
    assert state.idle is not None
    return state.idle


def ends_in(state: State) -> int:
    """When it ends unless it is used, in seconds after the start."""
    end = ycluster.unused_end(state)
    assert end is not None
    return end - int(NOW)


# --- any history: what is used never ends, and what is unused does, in time


class Crash(BaseException):
    """SIGKILL."""


class Sleeper(Clocked):
    """A host that has been suspended for `slept` seconds of its boot."""

    slept = 0.0

    def monotonic(self) -> float:
        return self.uptime() - self.slept


class Run:
    """One run of a cluster. Times are in seconds since the boot, which no clock that is set changes."""

    longest_wait = ycluster.HOLD_LOOK + ycluster.HOLD_GRACE + 2  # beside those for the next look

    def __init__(self, home: Path, max_run: str, max_idle: str, warn: str) -> None:
        self.host = Sleeper(home)
        self.timer = Memory("memory", [])
        self.holders: dict[int, int] = {}  # those that live
        self.pids = itertools.count(1000)
        self.connected = self.hangs = self.stuck = False
        self.cpu, self.load = 0.0, 0.0
        self.crashes = self.crashed = False
        self.slack = 0
        self.ended = ""  # why
        self.warned: list[tuple[str, float]] = []
        self.looks: list[float] = []
        limit = ycluster.budget(max_idle)
        assert limit is not None
        self.limit, self.interval = limit / 1e9, ycluster.look_interval(limit)
        length = ycluster.budget(max_run)
        self.deadline = self.now + (length / 1e9 if length else ycluster.NEVER)
        self.lead = (ycluster.budget(warn) or 0) / 1e9
        self.used = self.calm = self.free = self.disturbed = self.now
        self.files = Files(home, "demo")
        self.lifetime = {"lifetime": max_run, "max_idle": max_idle, "warn": warn}

    def begins(self) -> None:
        one = made(self.files.cache_dir, **self.lifetime)
        ycluster.arm_timers(self.host, anchored(one, self.host.clock()))

    def is_over(self) -> None:
        """Nobody uses it any more, until it ends."""
        self.connected = self.hangs = self.stuck = False
        self.holders, self.load = {}, 0.0
        self.fire()
        self.disturb()
        self.passes(self.limit + 4 * self.interval + self.slack + MINUTE)

    @property
    def now(self) -> float:
        return self.host.uptime()

    @property
    def state(self) -> State:
        return ycluster.load_state(self.files)

    # --- in the place of what is outside

    def measured_use(self, host: Host, files: Files) -> tuple[int | None, float | None]:
        return (None if self.hangs else int(self.connected)), self.cpu

    def process_start(self, pid: int) -> int:
        return self.holders.get(pid, 0)

    def save_state(self, state: State) -> State:
        if self.crashes:
            self.crashes = False
            raise Crash
        return save_state(state)

    def halt(self, host: Host, state: State) -> str:
        if self.stuck:
            raise YclusterError("QEMU is alive after SIGKILL")
        return "SIGTERM"

    def expire(self, host: Host, state: State, decision: Decision, by: str) -> None:
        assert decision.do == "stop" and decision.end is not None and not self.holders
        if decision.end.cause == ycluster.UNUSED:
            assert not self.connected and not self.hangs, "it is in use"
            assert self.now >= self.used + self.limit - 2, "it was in use just now"
            assert not self.is_to_be_warned() or self.is_warned_of(decision.end.at), (
                "nobody was warned"
            )
        else:
            assert self.now >= self.deadline - 2
        expire(host, state, decision, by)
        self.ended = decision.end.cause

    def is_to_be_warned(self) -> bool:
        """Whether a warning must have come before it ends for being live."""
        looked = self.now - self.disturbed > 2 * self.interval + self.longest_wait + self.slack
        return 0 < self.lead < self.limit and looked

    def is_warned_of(self, end: int, cause: str = ycluster.UNUSED) -> bool:
        moment = end - self.host.booted
        return any(why == cause and abs(at - moment) < 3 for why, at in self.warned)

    def warn(self, host: Host, state: State, decision: Decision) -> None:
        assert decision.end is not None and not self.ended
        at, cause = decision.end.at, decision.end.cause
        if at <= host.now():  # its last hold has ended after the deadline
            assert cause == ycluster.BUDGET and state.retry_at
            return
        assert not self.is_warned_of(at, cause), f"warned twice of {cause}"
        self.warned.append((cause, at - self.host.booted))

    # --- what happens

    def disturb(self) -> None:
        """From now on it is calm; nothing is to be expected of the time before."""
        self.calm = self.free = self.disturbed = self.now

    def in_use(self) -> bool:
        return bool(self.connected or self.hangs or self.holders or self.load)

    def advance(self, seconds: float) -> None:
        self.cpu += seconds * self.load / 100
        self.host.time += seconds
        if self.in_use():
            self.calm = self.now
        if self.holders:
            self.free = self.now

    def fire(self) -> None:
        """A reap, by those timers that are due, or by the next command."""
        before = ycluster.current(self.host, self.files)
        for ident, due in list(self.timer.standing.items()):
            if due <= self.host.now():
                del self.timer.standing[ident]
        seen = self.connected or self.hangs or self.holders or before.holds
        spent = self.cpu - idle_of(before).cpu / 1000 if before.idle else 0
        with contextlib.suppress(YclusterError):
            ycluster.reap(self.host, self.files, by="memory")
        after = self.state
        if before.idle and after.idle and before.idle.seen < after.idle.seen:
            self.looks.append(self.now)
            over = 100 * spent / max(1, self.host.now() - before.idle.seen) > 26
            if seen or over:
                self.used = max(self.used, self.now)
        if self.ended:
            assert after.idle is None and (self.crashed or not self.timer.standing)

    def check_bounds(self) -> None:
        if self.ended or self.stuck:
            return
        bound = self.calm + max(self.limit, self.interval) + 2 * self.interval + 2
        assert self.now <= bound + self.slack, "it is not used, and runs on"
        bound = max(self.deadline, self.free) + self.longest_wait
        assert self.now <= bound + self.slack, "it is overdue"

    def passes(self, seconds: float) -> None:
        """Time, in which every timer fires when it is to."""
        until = self.now + seconds
        while not self.ended:
            due = min(self.timer.standing.values(), default=ycluster.NEVER) - self.host.booted
            if due > until:
                break
            self.advance(max(0.0, due - self.now))
            looks = len(self.looks)
            self.fire()
            is_calm = len(self.looks) > max(1, looks) and self.looks[-2] > self.disturbed
            if is_calm and not self.stuck:
                apart = self.looks[-1] - self.looks[-2]
                least = max(MINUTE, min(self.limit / 6, 15 * MINUTE))
                assert least - 2 <= apart <= 2 * self.interval + self.longest_wait
            self.check_bounds()
        self.advance(max(0.0, until - self.now))

    def passes_without_timers(self, seconds: float) -> None:
        """The host is busy, or its timers are lost; then the next command comes."""
        self.advance(seconds)
        self.fire()
        self.disturb()

    def sleeps(self, seconds: float) -> None:
        """The host is suspended; whoever wakes it is not found without the cluster."""
        load, self.load = self.load, 0.0
        self.host.slept += seconds
        self.advance(seconds)
        self.load = load
        self.fire()
        self.disturb()

    def clock_is_set(self, by: float) -> None:
        self.host.set_clock(by)
        self.fire()
        self.disturb()

    def connects(self, connected: bool) -> None:
        self.connected = connected

    def hangs_now(self, hangs: bool) -> None:
        self.hangs = hangs

    def works(self, load: float) -> None:
        self.load = load

    def is_stuck(self, stuck: bool) -> None:
        self.stuck = stuck
        self.slack = 15 * MINUTE  # so long after an end that failed may the next try be
        self.disturb()

    def is_held(self, holds: bool) -> None:
        if not holds:
            self.holders.clear()
            return
        pid = next(self.pids)
        self.holders[pid] = pid
        held(self.host, self.files, at_most="1000h", pid=pid)
        self.used = self.calm = self.now

    def is_logged_in_to(self, _: bool) -> None:
        ycluster._note_use(self.host, self.state)
        self.used = self.calm = self.now

    def crashes_at_the_next_look(self, _: bool) -> None:
        self.crashes = self.crashed = True
        with contextlib.suppress(Crash):
            self.fire()
        self.crashes = False
        self.disturb()
        self.fire()


save_state, expire = ycluster.save_state, ycluster._expire
spans = st.sampled_from([7, 55, 61, 299, 301, 600, 1000, 3000, 8000])
steps = st.one_of(
    st.tuples(st.just("passes"), spans),
    st.tuples(st.just("passes"), spans),
    st.tuples(st.just("passes"), st.integers(1, 6000)),
    st.tuples(st.just("passes_without_timers"), spans),
    st.tuples(st.just("sleeps"), spans),
    st.tuples(st.just("clock_is_set"), st.sampled_from([-90_000, -4000, 4000, 90_000])),
    st.tuples(st.just("works"), st.sampled_from([0, 0, 5, 30, 400])),
    *[
        st.tuples(st.just(name), st.booleans())
        for name in ("connects", "hangs_now", "is_stuck", "is_held")
    ],
    st.tuples(st.just("is_logged_in_to"), st.none()),
    st.tuples(st.just("crashes_at_the_next_look"), st.none()),
)


histories = st.lists(steps, max_size=15)


@contextlib.contextmanager
def a_run(max_run: str, max_idle: str, warn: str) -> Iterator[Run]:
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        run = Run(Path(place), max_run, max_idle, warn)
        patch.setattr("ycluster.os.fsync", lambda fd: None)
        patch.setattr(ycluster, "TIMERS", (run.timer,))
        patch.setattr(ycluster, "install_program", lambda *args: None)
        patch.setattr(ycluster, "_settled", lambda host, state: state)
        patch.setattr(ycluster, "vm_status", lambda host, files: "running")
        patch.setattr(ycluster, "measured_use", run.measured_use)
        patch.setattr(ycluster, "process_start", run.process_start)
        patch.setattr(ycluster, "save_state", run.save_state)
        patch.setattr(ycluster, "_expire", run.expire)
        patch.setattr(ycluster, "_warn", run.warn)
        patch.setitem(ycluster.END_BY, "stop", run.halt)
        run.begins()
        yield run


@settings(max_examples=settings().max_examples // 2)
@given(
    st.sampled_from(["", "", "2h", "40m", "100h"]),
    st.sampled_from(["10s", "5m", "365s", "30m", "100m", "20h"]),
    st.sampled_from(["10m", "2m", "30s", "", "29m"]),
    histories,
)
@example("", "100m", "10m", [])  # no look comes in the last ten minutes
@example("2h", "100m", "29m", [])  # both of its ends are near
@example("", "30m", "4m", [("connects", True), ("passes", 3000), ("connects", False)])
@example("", "30m", "", [("works", 30), ("passes", 3000), ("works", 5), ("passes", 3000)])
@example("2h", "20h", "10m", [("is_held", True), ("passes", 8000), ("is_held", False)])
@example("", "30m", "", [("passes", 1000), ("sleeps", 8000), ("passes", 600)])
@example(
    "", "30m", "", [("is_stuck", True), ("passes", 3000), ("connects", True), ("passes", 3000)]
)
@example("2h", "30m", "10m", [("clock_is_set", 90_000), ("passes", 600), ("clock_is_set", -4000)])
def test_what_is_used_never_ends_and_what_is_unused_does_in_time_and_warned_once(
    max_run: str, max_idle: str, warn: str, history: list[tuple[str, Any]]
) -> None:
    with a_run(max_run, max_idle, warn) as run:
        for name, argument in history:
            if not run.ended:
                getattr(run, name)(argument)
        if not run.ended:
            run.is_over()
        assert run.ended


# --- what a look sees


@pytest.mark.parametrize(
    "fields, look, by",
    [
        ({}, {}, ""),
        ({}, {"connections": 1}, "connection"),
        ({}, {"holds": True}, "hold"),
        ({}, {"cpu": 78.1}, "cpu"),
        ({}, {"cpu": 74.9}, ""),  # a quarter of five minutes
        ({"idle_cpu": 400}, {"cpu": 1190.0}, ""),
        ({"idle_cpu": 400}, {"cpu": 1210.0}, "cpu"),
        ({"idle_cpu": 0}, {"cpu": 10_000.0}, ""),
        ({"idle_cpu": 0}, {"cpu": None}, ""),
        ({"idle_cpu": 0}, {"connections": 1}, "connection"),
        ({}, {"connections": None}, "unmeasured"),
        ({"idle_cpu": 0}, {"connections": None}, "unmeasured"),
        ({}, {"cpu": None}, "unmeasured"),
    ],
)
def test_a_look_tells_by_what_it_is_used(
    fields: dict[str, Any], look: dict[str, Any], by: str
) -> None:
    """What can't be told counts as use; its CPU time never does where idleCpu is 0. (23)"""
    one = looked(anchored(state(**fields), at(0)), 300, **look)
    assert idle_of(one).by == by and by in ("", *ycluster.USES)
    assert idle_of(one).used == int(NOW) + (300 if by else 0)


def test_the_use_of_a_verb_and_of_a_late_look_is_told_too() -> None:
    """(23)"""
    begun = anchored(state(), at(0))
    assert idle_of(begun).by == ycluster.VERB and idle_of(begun).used == int(NOW)
    late = looked(begun, 601)
    assert idle_of(late).by == ycluster.LATE and ends_in(late) == 601 + 1800
    in_time = looked(begun, 600)
    assert idle_of(in_time).by == "" and ends_in(in_time) == 1800
    assert idle_of(looked(begun, 300, slept=3)).by == ycluster.LATE
    once = looked(looked(begun, 300, slept=3), 600, slept=3)
    assert idle_of(once).by == "" and ends_in(once) == 300 + 1800
    gone = ycluster.Hold(5, 5, "boot", int(NOW), None, "make test", "hold")
    held = looked(replace(begun, holds=(gone,)), 300)
    assert idle_of(held).by == ycluster.VERB and ends_in(held) == 300 + 1800, "it has ended since"
    assert {ycluster.VERB, ycluster.LATE} <= set(ycluster.USES)


def test_a_vm_that_starts_is_seen_to_be_unused_by_the_first_look() -> None:
    """Its CPU time is known from the start on: of a boot that took little, nothing is left to doubt. (23)"""
    begun = anchored(state(), at(0))
    assert agenda(begun) == [ycluster.Moment(NOW + 300, ycluster.LOOK)]
    first = looked(begun, 300, cpu=60.0)
    assert (idle_of(first).by, idle_of(first).percent, ends_in(first)) == ("", 20, 1800)


def test_a_vm_that_somebody_else_has_started_meanwhile_is_no_telling() -> None:
    """As y-cluster does: it has used less CPU time than at the look before. (23)"""
    one = looked(anchored(state(), at(0)), 300, cpu=50.0)
    again = looked(one, 600, cpu=10.0)
    assert (idle_of(again).by, idle_of(again).percent) == (ycluster.UNMEASURED, -1)
    assert ends_in(again) == 600 + 1800


@pytest.mark.parametrize("use", [{"connections": 2}, {"holds": True}, {"connections": None}])
def test_what_was_in_use_at_one_look_was_so_until_the_next(use: dict[str, Any]) -> None:
    """Nobody has seen when it ended: the count begins at the latest that it can have been. (23)"""
    one = looked(looked(anchored(state(), at(0)), 300, **use), 600)
    assert idle_of(one).by == "" and ends_in(one) == 600 + 1800
    again = looked(one, 900)
    assert ends_in(again) == 600 + 1800


@pytest.mark.parametrize("use", [{"cpu": 200.0}, {"cpu": 100.0, "slept": 50.0}])
def test_what_is_measured_over_the_whole_time_counts_to_the_look(use: dict[str, Any]) -> None:
    one = looked(anchored(state(), at(0)), 300, **use)
    assert ends_in(looked(one, 600, **use)) == 300 + 1800


@given(st.integers(1, 400 * 24 * HOUR))
def test_looks_are_at_least_a_minute_and_at_most_15_apart(seconds: int) -> None:
    interval = ycluster.look_interval(seconds * 10**9)
    assert MINUTE <= interval <= 15 * MINUTE
    assert interval in (MINUTE, 15 * MINUTE) or abs(interval - seconds / 6) < 1


@pytest.mark.parametrize(
    "max_idle, ends", [("30m", 1800), ("2h", 7200), ("100m", 6000), ("365s", 365), ("1m", 60), ("10s", 60)]
)  # fmt: skip
def test_a_vm_that_nobody_uses_ends_when_it_is_to_and_not_a_look_later(
    max_idle: str, ends: int
) -> None:
    """Or after a minute, as no look comes sooner. (23)"""
    one, now = anchored(state(max_idle=max_idle), at(0)), 0
    while decide(one, at(now)).do != "stop":
        now = int(ycluster.time_of(one, ycluster.LOOK) - NOW)
        one = looked(one, now)
    assert now == ends
    assert decide(one, at(now)).end == ycluster.End(int(NOW) + ends_in(one), ycluster.UNUSED)


def test_only_a_look_of_just_now_ends_it() -> None:
    """Whoever has begun to use it since is not to lose it. (23)"""
    one = replace(anchored(state(), at(0)), expires_at=None)
    for seconds in (300, 600, 900, 1200, 1500, 1800):
        one = looked(one, seconds)
    assert decide(one, at(1800)).do == decide(one, at(1860)).do == "stop"
    assert decide(one, at(1861)).do == decide(one, at(1799)).do == "rearm"
    assert decide(ycluster.used_by_hand(one, NOW + 1801), at(1802)).do == "rearm"
    assert decide(replace(one, boot_id="another", on_expiry="teardown"), at(1800)).do == "stop"


@pytest.mark.parametrize("max_idle", ["", "0"])
def test_without_max_idle_nobody_looks(max_idle: str) -> None:
    begun = anchored(state(max_idle=max_idle), at(0))
    assert begun.idle is None and agenda(begun) == []
    assert decide(begun, at(10**9)).do == "nothing"


def test_the_sooner_of_both_ends_counts() -> None:
    begun = anchored(state(lifetime="20m"), at(0))
    assert [end.cause for end in ycluster.ends_of(begun)] == [ycluster.BUDGET, ycluster.UNUSED]
    assert decide(looked(begun, 1200, connections=1), at(1200)).end == ycluster.End(
        int(NOW) + 1200, ycluster.BUDGET
    )
    longer = anchored(state(lifetime="8h"), at(0))
    assert [end.cause for end in ycluster.ends_of(longer)] == [ycluster.UNUSED, ycluster.BUDGET]


def test_each_end_is_warned_of_once_where_both_are_near() -> None:
    """Whichever comes first. (23)"""
    one = anchored(state(lifetime="1h", max_idle="15m", warn="10m"), at(0))
    told = []
    for second in range(0, 3500, 10):
        if ycluster.time_of(one, ycluster.LOOK) <= NOW + second:
            one = looked(one, second, connections=int(second <= 2500))
        decision = decide(one, at(second))
        if decision.do == "warn" and decision.end is not None:
            told.append(decision.end.cause)
            one = ycluster._warned(one, decision.end)
    assert sorted(told) == [ycluster.UNUSED, ycluster.BUDGET]


def test_an_extension_is_a_use_and_ends_no_count_of_its_own() -> None:
    """(23)"""
    begun = looked(anchored(state(lifetime="8h"), at(0)), 300)
    more = ycluster.moved(begun, ycluster.HowFar(by=HOUR * 10**9), at(500))
    assert ends_in(more) == 500 + 1800 and more.expires_at == int(NOW) + 9 * HOUR


def test_a_clock_that_is_set_moves_the_count_along() -> None:
    """(23)"""
    begun = looked(anchored(state(warn="10m"), at(0)), 300)
    begun = replace(begun, idle=replace(idle_of(begun), warned=int(NOW) + 1800))
    clock = Clock(NOW + 5000 + 300, NOW - HOUR + 5000, "boot")
    moved = ycluster.adjusted(begun, clock)
    before, after = idle_of(begun), idle_of(moved)
    for name in ("used", "seen", "next", "warned"):
        assert getattr(after, name) == getattr(before, name) + 5000
    assert ycluster.adjusted(moved, clock) == moved


# --- what QEMU tells


@pytest.mark.parametrize(
    "lines, connections",
    [
        ("", 0),
        (USERNET, 0),
        ("  TCP[ESTABLISHED]   20       127.0.0.1 40022       10.0.2.15    22     0     0", 1),
        ("  TCP[ESTABLISHED]  120 192.168.100.200 40022       10.0.2.15    22   100    20", 1),
        ("  TCP[SYN_SENT]      20       127.0.0.1 40022       10.0.2.15    22     0     0", 1),
        ("  TCP[CLOSE_WAIT]    20       127.0.0.1 40022       10.0.2.15    22     0     0", 1),
        ("  TCP[TIME_WAIT]     20       127.0.0.1 40022       10.0.2.15    22     0     0", 0),
        ("  TCP[CLOSED]        20       127.0.0.1 40022       10.0.2.15    22     0     0", 0),
        ("  TCP[LAST_ACK]      20       127.0.0.1 40022       10.0.2.15    22     0     0", 0),
        ("  TCP[ESTABLISHED]   21       10.0.2.15 51000   93.184.216.34   443     0     0", 0),
        ("  TCP[FIN_WAIT_2]    20       127.0.0.1 40022       10.0.2.15    22     0     0", 1),
        ("  UDP[236 sec]       22       10.0.2.15 48721         1.1.1.1    53     0     0", 0),
        ("  UDP[236 sec]       22       127.0.0.1 48721       10.0.2.15    53     0     0", 0),
        ("  ICMP[10 sec]       23       10.0.2.15   -           1.1.1.1   -       0     0", 0),
    ],
)  # fmt: skip
def test_the_connections_that_lead_into_the_guest_are_counted_and_no_others(
    host: Clocked, monkeypatch: pytest.MonkeyPatch, lines: str, connections: int
) -> None:
    """Not those of the guest itself, not what is over, and not what only listens. (23)"""
    text = f"{USERNET}{lines}\n".replace("\n", "\r\n")
    monkeypatch.setattr(ycluster, "ask_qemu", lambda *args, **options: text)
    assert ycluster._connections(host, Files(Path("/c"), "demo")) == connections
    monkeypatch.setattr(ycluster, "ask_qemu", lambda *args, **options: text + text)
    assert ycluster._connections(host, Files(Path("/c"), "demo")) == 2 * connections


def test_a_vm_is_measured_by_its_monitor_and_its_process(
    host: Clocked, cache: Path, processes: Processes
) -> None:
    files = Files(cache, "demo")
    assert ycluster.measured_use(host, files) is None, "it is off"
    process = stand_in(processes, files, USED)

    def connections() -> int | None:
        """How many are seen; the CPU time beside them is that of the process, which goes on."""
        before = ycluster.cpu_time(process.pid)
        seen, cpu = ycluster.measured_use(host, files) or (None, None)
        after = ycluster.cpu_time(process.pid)
        assert before is not None and cpu is not None and after is not None
        assert before <= cpu <= after
        return seen

    assert connections() == 1
    ycluster.ask_qemu(host, files, "stop")  # QEMU then lists for ever who has given up
    assert connections() == 0
    ycluster.ask_qemu(host, files, "cont")
    assert connections() == 1
    files.qmp.unlink()
    assert connections() is None


@pytest.mark.parametrize("answer", [None, {}, 5, ["TCP"]])
def test_an_odd_answer_of_a_monitor_is_no_telling(
    host: Clocked, monkeypatch: pytest.MonkeyPatch, answer: object
) -> None:
    monkeypatch.setattr(ycluster, "ask_qemu", lambda *args, **options: answer)
    assert ycluster._connections(host, Files(Path("/c"), "demo")) is None


def test_a_vm_out_of_sight_is_no_telling(host: Clocked, monkeypatch: pytest.MonkeyPatch) -> None:
    def unseen(host: Host, files: Files) -> None:
        raise YclusterError("its QEMU runs, and can't be seen from here")

    monkeypatch.setattr(ycluster, "find_vm", unseen)
    assert ycluster.measured_use(host, Files(Path("/c"), "demo")) == (None, None)


# --- in the state file


def test_what_is_known_of_its_use_is_saved_with_the_state(cache: Path) -> None:
    idle = Idle(1, 2, 3, "cpu", 4, 5, 6, 7, 8)
    hold = ycluster.Hold(9, 10, "boot-1", 11, None, "make test", "hold")
    one = made(cache, lifetime="", max_idle="30m", idle=idle, holds=(hold,), idle_cpu=0)
    assert ycluster.load_state(one.files) == one
    written = json.loads(one.files.sidecar.read_text())
    assert {"idle", "holds", "maxIdle", "idleCpu"} <= set(written)


def test_a_state_file_of_before_knows_of_no_use_and_no_hold(cache: Path) -> None:
    one = made(cache, max_idle="30m")
    written = json.loads(one.files.sidecar.read_text())
    for name in ("idle", "holds", "maxIdle", "idleCpu"):
        written.pop(name, None)
    one.files.sidecar.write_text(json.dumps(written))
    read = ycluster.load_state(one.files)
    assert (read.idle, read.holds, read.max_idle, read.idle_cpu) == (None, (), "", 25)


# --- a cluster with maxIdle alone


def looks(live: Live, times: int) -> list[int]:
    """So many looks; when they were, in minutes after the start."""
    return [round(live.fires() / MINUTE) for _ in range(times)]


@pytest.mark.parametrize(
    "action, left", [("stop", "stopped"), ("pause", "paused"), ("teardown", "stopped")]
)
def test_a_cluster_that_nobody_uses_is_warned_of_and_ends(
    live: Live, action: str, left: str
) -> None:
    """(23)"""
    live.starts(on_expiry=action)
    state = live.state
    assert state.expires_at is None and state.timer and state.timer.event == ycluster.LOOK
    assert list(live.timer.standing.values()) == [int(NOW) + 300]
    assert looks(live, 5) == [5, 10, 15, 20, 25] and live.runs
    assert looks(live, 1) == [30] and ycluster.vm_status(live.host, live.files) == left
    assert live.files.disk.exists() is (action != "teardown") and live.timer.standing == {}
    events = live.events("started")
    assert [event["event"] for event in events] == ["unused", "warned", "reaped"]
    assert events[1]["at"] == ycluster.format_time(NOW + 20 * MINUTE)
    assert events[1]["expiresAt"] == events[2]["at"] == ycluster.format_time(NOW + 30 * MINUTE)
    assert {event["cause"] for event in events[1:]} == {"maxIdle"}
    assert (events[2]["action"], events[2]["maxIdle"]) == (action, "30m")
    if action != "teardown":
        state = live.state
        assert state.reaped and state.reaped.cause == ycluster.UNUSED and state.idle is None
        assert missing(ycluster.last_expiry(state), "unused for 30m") == []
    else:
        assert missing(ycluster.last_teardown(live.host, "demo"), "unused for 30m") == []


def test_a_cluster_that_is_used_does_not_end(live: Live) -> None:
    """(23)"""
    live.monitor = USED
    live.starts()
    assert looks(live, 12) == [5 * look for look in range(1, 13)] and live.runs
    state = live.state
    assert idle_of(state).by == "connection" and idle_of(state).connections == 1
    assert [event["event"] for event in live.events()] == ["started"]


def test_a_vm_whose_monitor_does_not_answer_does_not_end(live: Live) -> None:
    """It may be in use, for all that is known. (23)"""
    live.monitor = ""
    live.starts()
    looks(live, 12)
    assert live.runs and idle_of(live.state).by == ycluster.UNMEASURED
    assert idle_of(live.state).connections == -1


def test_a_vm_that_has_ended_by_itself_is_recorded_as_expired_and_costs_no_disk(
    live: Live,
) -> None:
    live.starts(on_expiry="teardown")
    [vm] = live.processes.started
    vm.kill()
    vm.wait()
    looks(live, 6)
    state = live.state
    assert state.reaped and (state.reaped.action, state.reaped.cause) == ("stop", ycluster.UNUSED)
    assert live.files.disk.exists() and state.idle is None and live.timer.standing == {}


def test_an_end_that_failed_is_tried_again_and_taken_back_where_it_is_used_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(23)"""
    live.starts(on_expiry="teardown", warn="")
    looks(live, 5)

    def refuse(host: Host, state: State) -> str:
        raise YclusterError("QEMU is alive after SIGKILL")

    with monkeypatch.context() as broken:
        broken.setitem(ycluster.END_BY, "teardown", refuse)
        for _ in range(2):
            with pytest.raises(YclusterError):
                live.fires()
            failed = live.state
            assert failed.retry_at and failed.ending == "teardown" and failed.idle
            [again] = live.timer.standing.values()
            assert 0 < again - live.host.time <= 15 * MINUTE
        broken.setattr(ycluster, "_connections", lambda host, files: 1)
        live.fires()
    state = live.state
    assert (state.retry_at, state.ending) == (None, "") and idle_of(state).by == "connection"
    assert [event["event"] for event in live.events()][-2:] == ["failed", "used"]
    looks(live, 6)  # what was in use at the look before is so until the next one
    assert live.runs
    looks(live, 1)
    assert not live.runs and not live.files.disk.exists()


def test_a_host_that_has_slept_ends_nothing_when_it_wakes(live: Live) -> None:
    """Whoever has woken it may be about to use it. (23)"""
    live.starts()
    looks(live, 5)
    live.host.time += 8 * HOUR
    ycluster.reap(live.host, live.files, by="memory")
    state = live.state
    assert live.runs and idle_of(state).by == ycluster.LATE
    assert ycluster.unused_end(state) == int(live.host.time) + 1800


def test_disarmed_it_is_not_looked_at_and_armed_again_it_counts_anew(live: Live) -> None:
    live.starts()
    looks(live, 2)
    ycluster.disarm(live.host, live.files)
    assert live.state.disarmed and live.timer.standing == {}
    live.host.time += 8 * HOUR
    ycluster.reap(live.host, live.files, by="hand")
    assert live.runs and live.state.disarmed
    ycluster.arm(live.host, ycluster.Selector(state_file=live.files.sidecar))
    state = live.state
    assert not state.disarmed and state.timer and state.timer.event == ycluster.LOOK
    ycluster.reap(live.host, live.files, by="hand")
    assert live.runs and ycluster.unused_end(live.state) == int(live.host.time) + 1800


def test_a_login_counts_as_use(live: Live) -> None:
    live.starts()
    looks(live, 5)
    live.host.time += 200
    ycluster._note_use(live.host, live.state)
    assert ycluster.unused_end(live.state) == int(live.host.time) + 1800
    live.fires()
    assert live.runs


def test_a_budget_beside_it_ends_what_is_used(live: Live) -> None:
    live.monitor = USED
    live.starts(lifetime="1h", warn="")
    while live.runs:
        live.fires()
    assert live.host.time == NOW + HOUR
    state = live.state
    assert state.reaped and state.reaped.cause == ycluster.BUDGET


def test_the_next_command_looks_at_what_has_lost_its_timer(live: Live) -> None:
    live.starts()
    assert not ycluster._needs_reap(live.host, live.state)
    live.timer.standing.clear()
    assert ycluster._needs_reap(live.host, live.state)
    ycluster.reap(live.host, live.files, by="next command")
    assert list(live.timer.standing.values()) == [int(NOW) + 300]
    live.host.time += 301
    assert ycluster._needs_reap(live.host, live.state)


def test_a_look_that_cannot_be_armed_costs_the_deadline_nothing(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline's own timer depends on no look. (23)"""
    arm = live.timer.arm

    def once(host: Host, files: Files, deadline: int) -> str:
        if live.timer.standing:
            raise YclusterError("the disk is full")
        return arm(host, files, deadline)

    monkeypatch.setattr(live.timer, "arm", once)
    live.starts(lifetime="8h")
    assert list(live.timer.standing.values()) == [int(NOW) + 8 * HOUR] and live.runs


def test_its_deadline_stays_armed_while_looks_come_and_go(live: Live) -> None:
    live.starts(lifetime="8h", warn="")
    [deadline] = [one for one, at in live.timer.standing.items() if at == NOW + 8 * HOUR]
    looks(live, 3)
    assert deadline in live.timer.standing and len(live.timer.standing) == 2


# --- what people see


def shown(cache: Path, **fields: Any) -> State:
    """A cluster that was last looked at a minute ago, by the clock of this machine."""
    host = Host({}, ycluster.Output(io.StringIO(), io.StringIO()))
    clock = host.clock()
    now = int(clock.now)
    idle: dict[str, Any] = {
        "used": now - 720,
        "seen": now - 60,
        "next": now + 240,
        "by": "",
        "cpu": 1000,
    }
    idle.update({"connections": 0, "percent": 3, **fields.pop("idle", {})})
    values = {"lifetime": "", "max_idle": "30m", "started_at": now - HOUR, **fields}
    values.update(boot_id=clock.boot_id, booted_at=round(clock.booted))
    return made(cache, idle=Idle(**idle), **values)


def test_people_see_for_how_long_it_was_unused_and_when_it_ends(
    cli: Cli, cache: Path, timer: Memory
) -> None:
    """(23)"""
    one = shown(cache)
    facts = json.loads(cli("lifetime", "status", "-o", "json").out)
    idle = facts["idle"]
    assert (facts["maxIdle"], facts["maxRun"], facts["expiresAt"]) == ("30m", "", "")
    assert (idle["connections"], idle["cpuPercent"], idle["usedBy"]) == (0, 3, "")
    assert 720 <= idle["unusedSeconds"] < 780
    assert idle["unusedSeconds"] + idle["remainingSeconds"] in (1799, 1800)
    assert idle["nextLookAt"] == ycluster.format_time(idle_of(one).next)
    told_to_people = cli("lifetime", "status").out
    assert missing(told_to_people, "idle:", "12m", "of 30m", "connections 0", "CPU 3 %") == []
    listed = cli("list").out
    assert missing(listed, "17m", "if unused") == []
    assert cli("lifetime", "disarm").code == 0 and "disarmed" in cli("list").out
    assert cli("lifetime", "arm").code == 0
    assert list(timer.standing.values()) == [ycluster.load_state(one.files).idle.next]  # type: ignore[union-attr]


def test_people_see_what_cannot_be_told(cli: Cli, cache: Path) -> None:
    """(23)"""
    shown(cache, idle={"by": "unmeasured", "connections": -1, "percent": -1})
    idle = json.loads(cli("list", "-o", "json").out)["clusters"][0]["idle"]
    assert (idle["connections"], idle["cpuPercent"], idle["usedBy"]) == (None, None, "unmeasured")
    words = cli("lifetime", "status").out
    assert missing(words, "connections ?", "CPU ? %", ycluster.USES["unmeasured"]) == []


def test_the_sooner_end_is_what_a_list_shows(cli: Cli, cache: Path) -> None:
    later = int(time.time()) + 8 * HOUR
    shown(cache, lifetime="9h", expires_at=later)
    assert "if unused" in cli("list").out
    shown(cache, lifetime="9h", expires_at=int(time.time()) + 300)
    assert "if unused" not in cli("list").out
    assert json.loads(cli("list", "-o", "json").out)["clusters"][0]["idle"] is not None


def test_a_cluster_that_is_not_looked_at_shows_none(cli: Cli, cache: Path) -> None:
    made(cache)
    [one] = json.loads(cli("list", "-o", "json").out)["clusters"]
    assert (one["idle"], one["holds"], one["maxIdle"]) == (None, [], "")
    told(cli("lifetime", "disarm"), 0, "nothing is armed")
