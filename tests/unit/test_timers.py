"""Section 10: what stands guard over a deadline."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import (
    GIVES_WAY,
    IMPORTS,
    NOW,
    PROGRAM,
    USED,
    Cli,
    Clocked,
    Live,
    Memory,
    Processes,
    folded,
    made,
    missing,
    monitor,
    refused,
    stand_in,
    tree,
    wait_for,
    with_disk,
)

import ycluster
from ycluster import (
    ArmedTimer,
    Files,
    Host,
    Output,
    State,
    arm_timers,
    replace,
    timer_argv,
    timers_for,
    unit_name,
)

labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
DEADLINE = int(NOW) + 3600


@pytest.fixture
def log() -> list[str]:
    return []


def use(monkeypatch: pytest.MonkeyPatch, *timers: Memory) -> None:
    monkeypatch.setattr(ycluster, "TIMERS", timers)


# --- what a timer runs


def test_a_timer_runs_the_private_copy_by_absolute_paths(host: Clocked, cache: Path) -> None:
    files = Files(cache, "demo")
    launcher, sidecar = f"{cache}/demo.ycluster.sh", f"{cache}/demo.json"
    assert timer_argv(files, "at", "reap", "--wait", "120s") == [
        "/bin/sh",
        launcher,
        "lifetime",
        "reap",
        "--wait",
        "120s",
        "--state",
        sidecar,
        "--by",
        "at",
    ]


def test_a_timers_interpreter_is_not_that_of_a_virtual_environment(host: Clocked) -> None:
    assert Path(host.interpreter()).resolve() == Path(sys.executable).resolve()
    assert not Path(host.interpreter()).parent.parent.joinpath("pyvenv.cfg").exists()


def test_the_private_copy_is_this_program_and_works_alone(
    host: Clocked, cache: Path, tmp_path: Path
) -> None:
    state = made(cache, lifetime="")
    ycluster.install_program(host, state.files)
    assert state.files.program.read_bytes() == Path(ycluster.__file__).read_bytes()
    assert state.files.program.stat().st_mode & 0o777 == 0o600
    done = host.run(timer_argv(state.files, "at", "reap"), timeout=60, env={})
    assert "demo:" in done.stderr and done.stdout == ""


def test_an_old_private_copy_is_replaced_and_a_current_one_kept(host: Clocked, cache: Path) -> None:
    files = Files(cache, "demo")
    files.program.write_text("old")
    ycluster.install_program(host, files)
    inode = files.program.stat().st_ino
    ycluster.install_program(host, files)
    assert files.program.stat().st_ino == inode and b"def main" in files.program.read_bytes()


@given(
    labels | st.text(min_size=1).map(lambda text: text.replace("\0", "").replace("/", "")),
    st.text(min_size=1).map(lambda text: text.replace("\0", "")),
    st.integers(0, 10**11),
)
def test_a_unit_name_is_valid_and_short_enough(name: str, place: str, deadline: int) -> None:
    unit = unit_name(Files(Path("/c") / place, name), deadline, "ab12")
    assert re.fullmatch(r"[A-Za-z0-9:_.\\-]+", unit) and len(unit + ".service") <= 255


def test_names_that_look_alike_in_a_units_name_are_told_apart() -> None:
    names = ["a b", "a%b", "a$b", "ä" * 300, "ö" * 300]
    assert len({unit_name(Files(Path("/c"), name), 5, "x") for name in names}) == len(names)


def test_unit_names_differ_by_place_deadline_and_nonce() -> None:
    one, other = Files(Path("/a"), "demo"), Files(Path("/b"), "demo")
    names = [
        unit_name(one, 5, "x"),
        unit_name(other, 5, "x"),
        unit_name(one, 6, "x"),
        unit_name(one, 5, "y"),
    ]
    assert len(set(names)) == 4 and all("demo" in name for name in names)
    assert unit_name(one, 5, "x") == names[0]


def test_at_is_asked_for_the_minute_of_the_deadline_with_a_job_that_waits(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """at(1) drops seconds: the job may come early, and waits; and it holds no secret of the environment."""
    seen = []

    class Recorder(Clocked):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            seen.append((argv, options))
            return subprocess.CompletedProcess(
                tuple(argv), 0, "", "warning: commands will be executed\njob 7 at Sat Nov 22\n"
            )

    host = Recorder(home, AWS_SECRET_ACCESS_KEY="hush")
    files = Files(cache, "it's")
    assert ycluster.AtTimer().arm(host, files, ycluster.parse_time("2025-11-22T09:26:59Z")) == "7"
    ((argv, options),) = seen
    assert argv[argv.index("-t") + 1] == "202511220926" and options["env"]["TZ"] == "UTC0"
    assert "hush" not in str(options) and str(options["cwd"]) == "/"
    words = shlex.split(options["stdin"])
    assert words[words.index("--wait") + 1] == "120s" and str(files.sidecar) in words


# --- which timer


@pytest.mark.parametrize(
    "environ, kept, tried",
    [
        (None, "", "systemd at watcher"),
        ("", "", "systemd at watcher"),
        ("systemd", "", "systemd"),
        ("at", "", "at"),
        ("watcher", "", "watcher"),
        # What an earlier command chose comes first; should it be gone, another is better than none.
        (None, "watcher", "watcher systemd at"),
        ("", "at", "at systemd watcher"),
        ("at", "watcher", "at"),
        ("auto", "watcher", "systemd at watcher"),
        (None, "another version's", "systemd at watcher"),
    ],
)
def test_timers_are_tried_best_first_and_before_them_what_was_chosen(
    home: Path, environ: str | None, kept: str, tried: str
) -> None:
    """(20.23)"""
    host = Clocked(home, **({} if environ is None else {"YCLUSTER_TIMER": environ}))
    state = State(name="demo", cache_dir="/c", timer_choice=kept)
    assert [timer.name for timer in timers_for(host, state)] == tried.split()


def test_a_timer_that_does_not_exist_is_a_usage_error(home: Path) -> None:
    with refused(ycluster.UsageError, "YCLUSTER_TIMER=cron", "systemd, at, watcher"):
        timers_for(Clocked(home, YCLUSTER_TIMER="cron"), State(name="demo", cache_dir="/c"))


@pytest.mark.parametrize("verb", ["lifetime arm", "lifetime extend 1h"])
def test_a_timer_that_was_chosen_is_armed_again_by_whoever_does_not_choose(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str], verb: str
) -> None:
    """Such as the timer itself, which has no YCLUSTER_TIMER; `auto` forgets the choice. (20.23)"""
    use(monkeypatch, Memory("best", log), Memory("worse", log))
    state = made(cache, expires_at=int(time.time()) + 3600)

    def armed_by(argv: str) -> str:
        assert cli(*argv.split()).code == 0
        timer = ycluster.load_state(state.files).timer
        return timer.backend if timer else ""

    monkeypatch.setenv("YCLUSTER_TIMER", "worse")
    assert armed_by(verb) == "worse"
    monkeypatch.delenv("YCLUSTER_TIMER")
    fired = "lifetime reap --by worse"
    assert [armed_by(argv) for argv in (fired, "lifetime extend 1h", "lifetime arm")] == [
        "worse"
    ] * 3
    shown = json.loads(cli("lifetime", "status", "-o", "json").out)["enforcement"]
    assert (shown["chosen"], shown["improve"]) == ("worse", "")
    assert "YCLUSTER_TIMER" in cli("lifetime", "status").out
    monkeypatch.setenv("YCLUSTER_TIMER", "auto")
    assert armed_by("lifetime arm") == "best"
    monkeypatch.delenv("YCLUSTER_TIMER")
    assert armed_by("lifetime reap --by best") == "best"


def test_a_choice_that_is_not_there_any_more_costs_no_deadline(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """Another timer takes it, and that is said; where the choice is made, it is an error. (20.23)"""
    gone = Memory("gone", log, unusable="it went with its package")
    use(monkeypatch, Memory("best", log), gone)
    state = arm_timers(host, made(cache, expires_at=DEADLINE, timer_choice="gone"))
    assert state.timer and state.timer.backend == "best"
    assert missing(host.log.getvalue(), "warning:", "it went with its package") == []
    host.environ["YCLUSTER_TIMER"] = "gone"
    with refused(ycluster.PrerequisiteError, "it went with its package"):
        arm_timers(host, state, renew=True)


def test_programs_that_are_missing_make_a_timer_unusable(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Host, "which", lambda self, program: None)
    host = Clocked(home)
    systemd, at, watcher = ycluster.TIMERS
    for timer, program in ((systemd, "systemd-run"), (at, "missing: at")):
        with refused(ycluster.PrerequisiteError, program):
            timer.check(host)
    watcher.check(host)


# --- arm_timer


def test_the_new_timer_stands_and_is_saved_before_the_old_one_goes(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(monkeypatch, Memory("a", log))
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    state = arm_timers(host, replace(state, expires_at=DEADLINE + 60))
    assert log == ["arm a-0", "arm a-1", "cancel a-0 while a-1 is saved"]
    assert (
        state.timer == ArmedTimer("a", "a-1", DEADLINE + 60)
        and ycluster.load_state(state.files) == state
    )


def test_arming_the_same_deadline_again_is_nothing(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(monkeypatch, Memory("a", log))
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert arm_timers(host, state) == state and log == ["arm a-0"]


def test_a_timer_that_got_lost_is_armed_again(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    timer = Memory("a", log)
    use(monkeypatch, timer)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    timer.standing.clear()
    assert arm_timers(host, state).timer == ArmedTimer("a", "a-1", DEADLINE)


@pytest.mark.parametrize(
    "first",
    [
        {"unusable": "no daemon"},
        {"error": ycluster.ProgramFailed(["at"], 1, "no")},
        {"error": ycluster.TimedOut("at gave no answer")},
        {"error": OSError(2, "No such file or directory")},
    ],
    ids=["unusable", "fails", "hangs", "breaks"],
)
def test_a_timer_that_does_not_work_is_passed_over(
    host: Clocked,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
    first: dict[str, object],
) -> None:
    use(monkeypatch, Memory("a", log, **first), Memory("b", log))  # type: ignore[arg-type]
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert state.timer and state.timer.backend == "b"
    assert ("warning: timer a" in folded(host.log.getvalue())) == ("error" in first)


def test_where_nothing_works_the_deadline_is_saved_and_it_says_so(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(
        monkeypatch,
        Memory("a", log, unusable="no daemon"),
        Memory("b", log, error=ycluster.TimedOut("slow")),
    )
    with refused(ycluster.PrerequisiteError, "a: no daemon", "b: slow") as caught:
        arm_timers(host, made(cache, expires_at=DEADLINE, timers=(ArmedTimer("a", "gone", 5),)))
    saved = ycluster.load_state(Files(cache, "demo"))
    assert (saved.expires_at, saved.timer) == (DEADLINE, None) and "reap --all" in caught.value.hint


@pytest.mark.parametrize(
    "fires, is_lost, stays",
    [
        (DEADLINE, False, True),
        (DEADLINE, True, False),
        (DEADLINE - 60, False, True),
        (DEADLINE + 1, False, False),
        (int(NOW), False, False),
    ],
    ids=["in time", "lost", "early", "late", "fired"],
)
def test_where_nothing_works_a_timer_of_before_that_still_acts_stays(
    host: Clocked,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
    fires: int,
    is_lost: bool,
    stays: bool,
) -> None:
    """One that comes early decides afresh; one that is late would be taken for the guard that it is not. (25)"""
    chosen = Memory("a", log, unusable="no daemon")
    other = Memory("b", log)
    use(monkeypatch, chosen, other)
    monkeypatch.setitem(host.environ, "YCLUSTER_TIMER", "a")
    before = ArmedTimer("b", other.arm(host, Files(cache, "demo"), fires), fires)
    if is_lost:
        other.standing.clear()
    with refused(ycluster.PrerequisiteError, "a: no daemon") as caught:
        arm_timers(host, made(cache, expires_at=DEADLINE, timers=(before,)), renew=True)
    saved = ycluster.load_state(Files(cache, "demo"))
    assert saved.timers == ((before,) if stays else ())
    assert ("the timer of before, b, stays" in str(caught.value)) is stays
    assert ("reap --all" in caught.value.hint) is not stays


def test_an_old_timer_that_cannot_be_cancelled_is_no_obstacle(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    class Stuck(Memory):
        def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
            raise ycluster.TimedOut("slow")

    use(monkeypatch, Stuck("a", log))
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert arm_timers(host, replace(state, expires_at=DEADLINE + 1)).timer == ArmedTimer(
        "a", "a-1", DEADLINE + 1
    )


def test_no_deadline_takes_the_timer_away(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    timer = Memory("a", log)
    use(monkeypatch, timer)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert arm_timers(host, replace(state, expires_at=None)).timer is None
    assert timer.standing == {} and log[-1] == "cancel a-0 while None is saved"


def test_a_timer_of_another_version_is_no_obstacle(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(monkeypatch, Memory("a", log))
    state = arm_timers(
        host, made(cache, expires_at=DEADLINE, timers=(ArmedTimer("launchd", "x", DEADLINE),))
    )
    assert state.timer and state.timer.backend == "a"


def test_the_warning_has_a_timer_of_its_own_which_comes_second_and_goes_with_the_first(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(monkeypatch, Memory("a", log))
    state = arm_timers(host, made(cache, expires_at=DEADLINE, warn="10m"))
    assert state.timers == (
        ArmedTimer("a", "a-0", DEADLINE),
        ArmedTimer("a", "a-1", DEADLINE - 600, "warning"),
    )
    assert ycluster.load_state(state.files) == state
    assert arm_timers(host, state) == state and log == ["arm a-0", "arm a-1"]
    state = arm_timers(host, replace(state, warned=DEADLINE), renew=True)
    assert state.timers == (ArmedTimer("a", "a-2", DEADLINE),)
    assert sorted(log[3:]) == ["cancel a-0 while a-2 is saved", "cancel a-1 while a-2 is saved"]


def test_a_warning_that_cannot_be_armed_costs_the_deadline_nothing(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """Nor does it lead to a worse timer, or take the deadline's along."""

    class Fussy(Memory):
        def arm(self, host: Host, files: Files, deadline: int) -> str:
            if deadline != DEADLINE:
                raise OSError(28, "No space left on device")
            return super().arm(host, files, deadline)

    use(monkeypatch, Fussy("a", log), Memory("b", log))
    state = arm_timers(host, made(cache, expires_at=DEADLINE, warn="10m"))
    assert state.timers == (ArmedTimer("a", "a-0", DEADLINE),) and log == ["arm a-0"]
    assert ycluster.load_state(state.files) == state
    assert "warning: timer a" in host.log.getvalue()


def test_a_timer_that_the_environment_chooses_takes_the_place_of_a_better_one(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    best, worse = Memory("best", log), Memory("worse", log)
    use(monkeypatch, best, worse)
    state = made(cache, expires_at=int(time.time()) + 3600)
    for chosen, backend in (("", "best"), ("worse", "worse"), ("best", "best")):
        monkeypatch.setenv("YCLUSTER_TIMER", chosen)
        assert cli("lifetime", "reap").code == 0
        saved = ycluster.load_state(state.files)
        assert saved.timer and saved.timer.backend == backend
        assert saved.expires_at == saved.timer.deadline == state.expires_at
        standing = {timer.name: len(timer.standing) for timer in (best, worse)}
        assert standing == {"best": 0, "worse": 0, backend: 1}


# --- a timer that has fired


@pytest.mark.parametrize(
    "ahead, reaps",
    [(0, True), (60, True), (120, True), (121, False), (3600, False)],
)
def test_a_reap_waits_for_a_deadline_that_is_near_and_for_no_other(
    cli: Cli, host: Clocked, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch,
    ahead: int, reaps: bool,
) -> None:  # fmt: skip
    """at(1) runs its job up to a minute early; who extends meanwhile is not to be kept waiting."""
    monkeypatch.setattr(ycluster, "Host", lambda *args: host)
    state, deadline = made(cache, expires_at=int(NOW) + ahead), int(NOW) + ahead
    argv = ["lifetime", "reap", "--wait", "120s", "--by", "at", "--state", state.files.sidecar]
    assert cli(*argv).code == 0
    reaped = ycluster.load_state(state.files).reaped
    assert (reaped and reaped.at) == (deadline if reaps else None)
    assert list(timer.standing.values()) == ([] if reaps else [deadline])
    assert host.time <= NOW + 120


@pytest.mark.parametrize("by, code", [("systemd", 0), ("at", 0), ("watcher", 0), ("hand", 7)])
def test_a_timer_waits_for_as_long_as_the_cluster_is_worked_on_and_people_are_told(
    cli: Cli, home: Path, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch,
    by: str, code: int,
) -> None:  # fmt: skip
    """A person can come again; a timer fires once."""
    state = made(cache, expires_at=int(NOW) - 5)
    with os.fdopen(ycluster.try_flock(state.files.lock) or -1) as held:

        class Long(Clocked):
            def sleep(self, seconds: float) -> None:
                super().sleep(3600)
                if self.time >= NOW + 24 * 3600:
                    held.close()

        monkeypatch.setattr(ycluster, "Host", lambda *args: Long(home))
        assert cli("lifetime", "reap", "--state", state.files.sidecar, "--by", by).code == code
    assert bool(ycluster.load_state(state.files).reaped) is (code == 0)


# --- what is no guard


class Says(Clocked):
    """A host on which every program exits with 0 and says `said`; `ran` is what was run."""

    def __init__(self, home: Path, said: str, user: str = "nobody-such") -> None:
        super().__init__(home)
        self.said, self.ran, self.user = said, [], lambda: user  # type: ignore[method-assign]

    def which(self, program: str) -> str:
        return program

    def run(self, argv, **options):  # type: ignore[no-untyped-def]
        self.ran.append(list(argv))
        return subprocess.CompletedProcess(tuple(argv), 0, self.said, self.said)


@pytest.mark.parametrize("lingers", ["yes\n", "no\n", "\n"])
def test_a_systemd_that_ends_at_the_logout_is_no_guard(home: Path, lingers: str) -> None:
    if lingers == "yes\n":
        return ycluster.SystemdTimer().check(Says(home, lingers))
    with pytest.raises(ycluster.PrerequisiteError) as caught:
        ycluster.SystemdTimer().check(Says(home, lingers))
    assert caught.value.hint == "loginctl enable-linger"


def test_a_systemd_timer_is_taken_away_and_not_the_reap_that_runs(home: Path, cache: Path) -> None:
    host, files = Says(home, ""), Files(cache, "demo")
    unit = ycluster.unit_name(files, DEADLINE, "abcd")
    ycluster.SystemdTimer().cancel(host, files, ArmedTimer("systemd", unit, DEADLINE))
    assert host.ran == [["systemctl", "--user", "stop", f"{unit}.timer"]]


@pytest.mark.parametrize("atd", [True, False], ids=["atd runs", "no atd"])
def test_a_job_that_no_atd_will_run_is_no_guard(
    home: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    atd: bool,
) -> None:
    monkeypatch.setattr(ycluster.AtTimer, "daemon_runs", atd)
    files, at = Files(cache, "demo"), ycluster.AtTimer()
    host = Says(home, f"7\tnoon\nexec x lifetime reap --state {files.sidecar} --by at\n")
    files.program.touch()
    assert at.armed(host, files, ArmedTimer("at", "7", DEADLINE)) is atd
    with contextlib.nullcontext() if atd else pytest.raises(ycluster.PrerequisiteError):
        at.check(host)


def test_a_job_of_an_atd_that_is_stopped_is_no_guard(
    home: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SIGSTOP: it would run nothing until somebody continues it. (21.2.1)"""
    atd = processes.start("open('/proc/self/comm', 'w').write('atd')")
    pidfile = tmp_path / "atd.pid"
    pidfile.write_text(f"{atd.pid}\n")
    monkeypatch.setattr(ycluster.AtTimer, "PIDFILE", pidfile)
    assert ycluster.AtTimer().daemon_runs
    os.kill(atd.pid, signal.SIGSTOP)
    assert poll(lambda: not ycluster.AtTimer().daemon_runs)


def test_an_at_that_names_no_job_has_armed_nothing(home: Path, cache: Path) -> None:
    host = Says(home, "Can't open /run/atd.pid to signal atd")
    with pytest.raises(ycluster.YclusterError):
        ycluster.AtTimer().arm(host, Files(cache, "demo"), DEADLINE)


def test_a_watcher_that_does_not_come_up_is_no_guard(
    host: Clocked,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ycluster, "TIMERS", (ycluster.WatcherTimer(),))

    def ends(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["false"])
        process.wait()
        return process

    monkeypatch.setattr(host, "spawn", ends)
    with pytest.raises(ycluster.PrerequisiteError):
        arm_timers(host, made(cache, expires_at=DEADLINE))
    assert ycluster.load_state(Files(cache, "demo")).timer is None
    assert host.time == NOW, "one that has ended is not waited for"


def test_the_timers_that_the_version_before_has_armed_are_both_cancelled(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    use(monkeypatch, Memory("a", log))
    state = made(cache, expires_at=DEADLINE)
    saved = json.loads(state.files.sidecar.read_text())
    saved["timer"] = {
        "backend": "a",
        "id": "old",
        "deadline": ycluster.format_time(DEADLINE),
        "warning": "older",
    }
    state.files.sidecar.write_text(json.dumps(saved))
    assert arm_timers(host, ycluster.load_state(state.files)).timers == (
        ArmedTimer("a", "a-0", DEADLINE),
    )
    assert log == ["arm a-0", "cancel old while a-0 is saved", "cancel older while a-0 is saved"]


# --- the watcher, as a real process


def arm_watcher(cache: Path, home: Path, **fields: Any) -> tuple[Host, State]:
    host = Host(
        {"HOME": str(home), "PATH": "/usr/bin:/bin", "YCLUSTER_TIMER": "watcher"},
        Clocked(home).output,
    )
    state = made(cache, **fields)
    with ycluster.locked(host, state.files.lock, timeout=5):
        return host, arm_timers(host, state)


def poll(condition: object, seconds: float = 30) -> bool:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def watchers(files: Files) -> list[int]:
    """The pids of those that run a cluster's private copy."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(files.program).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def watched(cache: Path) -> Iterator[Files]:
    """A cluster's files; whatever watches it in the end is killed."""
    files = Files(cache, "demo")
    yield files
    for pid in watchers(files):
        os.kill(pid, signal.SIGKILL)


def test_the_watcher_holds_its_lock_and_leaves_when_it_is_disarmed(
    watched: Files, cache: Path, home: Path
) -> None:
    host, state = arm_watcher(cache, home, expires_at=int(time.time()) + 3)  # then it looks
    assert state.timer == ArmedTimer("watcher", "watch", state.expires_at or 0)
    assert ycluster.flock_held(watched.watch_lock) and ycluster.is_armed(host, state)
    with ycluster.locked(host, watched.lock, timeout=10):
        disarmed = ArmedTimer("none", "", state.expires_at or 0)
        ycluster.swap_timers(host, state, (disarmed,))
    assert poll(lambda: not ycluster.flock_held(watched.watch_lock))
    assert ycluster.load_state(watched).reaped is None


def test_the_watcher_has_a_session_of_its_own(watched: Files, cache: Path, home: Path) -> None:
    """A terminal that is closed, or a Ctrl-C in it, must not end it; nor does it keep a place."""
    arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    (pid,) = watchers(watched)
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert [os.readlink(f"/proc/{pid}/{of}") for of in ("cwd", "fd/0")] == ["/", os.devnull]


def test_a_watcher_is_small(watched: Files, cache: Path, home: Path) -> None:
    """One stands beside every VM: less than 12 MiB of its own. To compile the program takes 30. (21.1)

    What it has written to is its own. Of what it only reads, the kernel counts what no other process happens to read.
    """
    arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    (pid,) = watchers(watched)
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    (own,) = re.findall(r"Private_Dirty: +(\d+) kB", text)
    assert 0 < int(own) < 12 * 1024


@pytest.mark.parametrize("what", ["its job", "another's job"])
def test_a_number_that_at_has_given_to_another_is_neither_believed_nor_removed(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A new spool counts from 1 again, and job 1 is the user's own. (21.2.1)"""
    monkeypatch.setattr(ycluster.AtTimer, "daemon_runs", True)
    files, at, timer = Files(cache, "demo"), ycluster.AtTimer(), ArmedTimer("at", "1", DEADLINE)
    of = files.sidecar if what == "its job" else Files(cache, "demo-2").sidecar
    host = Says(home, f"1\tnoon\nexec x lifetime reap --state {of} --by at\n")
    assert at.armed(host, files, timer) is (what == "its job")
    at.cancel(host, files, timer)
    assert (["atrm", "1"] in host.ran) is (what == "its job")


@pytest.mark.parametrize("fault", ["stopped", "of an older version"])
def test_a_watcher_that_is_no_good_is_replaced_by_the_next_verb(
    watched: Files, cache: Path, home: Path, fault: str
) -> None:
    """By SIGSTOP, or by an upgrade; and there is one watcher, however often it is armed. (21.2.1)"""
    host, state = arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    (pid,) = watchers(watched)
    assert ycluster.is_armed(host, state)
    if fault == "stopped":
        os.kill(pid, signal.SIGSTOP)
        assert poll(lambda: not ycluster.is_armed(host, state))
    else:
        ycluster.write_file(watched.program, b"# older\n" + host.program_source())
    with ycluster.locked(host, watched.lock, timeout=10):
        for renew in (False, True, False):
            state = arm_timers(host, state, renew=renew)
    assert ycluster.is_armed(host, state)
    assert len(watchers(watched)) == 1 and watchers(watched) != [pid]
    assert watched.program.read_bytes() == host.program_source()


def test_a_watcher_of_the_place_that_the_files_were_moved_from_is_replaced(
    watched: Files, cache: Path, home: Path, tmp_path: Path
) -> None:
    """It would end the VM at the deadline of before an extension. (21.1.1)"""
    host, _ = arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    (pid,) = watchers(watched)
    moved = Files(tmp_path / "moved", "demo")
    cache.rename(moved.cache_dir)
    assert not ycluster.is_armed(host, ycluster.load_state(moved))
    try:
        with ycluster.locked(host, moved.lock, timeout=10):
            state = arm_timers(host, ycluster.load_state(moved))
        assert ycluster.is_armed(host, state)
        assert len(watchers(moved)) == 1 and pid not in watchers(watched)
    finally:
        for left in watchers(moved):
            os.kill(left, signal.SIGKILL)


def test_a_lock_that_is_held_by_no_watcher_is_no_watch(
    watched: Files, cache: Path, home: Path, processes: Processes
) -> None:
    """`flock dev.watch.lock sleep 1000` looks like one; it is told, and not killed. (21.2.1)"""
    code = "import fcntl, sys; kept = open(sys.argv[1], 'w'); fcntl.flock(kept, fcntl.LOCK_EX)"
    holder = processes.start(code, str(watched.watch_lock))
    with refused(ycluster.PrerequisiteError, "not a watcher"):
        arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    assert holder.poll() is None


def test_whoever_looks_at_a_lock_does_not_hold_it(cache: Path) -> None:
    """Else an arming that meets a `list` would take it for a watcher that is none. (21.2.1)"""
    path = cache / "demo.watch.lock"
    for shared, holder in ((False, os.getpid()), (True, None)):
        fd = ycluster.try_flock(path, shared=shared)
        assert fd is not None and ycluster.lock_holder(path) == holder
        os.close(fd)


@pytest.mark.parametrize("there", ["a directory", "a FIFO", "a link"])
def test_no_log_is_needed_to_be_armed(
    watched: Files, cache: Path, home: Path, tmp_path: Path, there: str
) -> None:
    """What stands at its name is not touched, and keeps nothing from being armed. (21.2.1)"""
    theirs = tmp_path / "theirs"
    theirs.touch()
    if there == "a directory":
        watched.log.mkdir()
    elif there == "a FIFO":
        os.mkfifo(watched.log)
    else:
        watched.log.symlink_to(theirs)
    host, state = arm_watcher(cache, home, expires_at=int(time.time()) + 3600)
    assert ycluster.is_armed(host, state) and theirs.stat().st_size == 0


@pytest.mark.parametrize("part", ["program", "launcher"])
@pytest.mark.parametrize("fault", ["cut", "empty", "altered", "a folder"])
def test_a_copy_that_is_not_whole_is_no_timer(
    home: Path, cache: Path, launching: Memory, part: str, fault: str
) -> None:
    """It is armed again by the next verb. A launcher that is cut off may end well. (21.2.1)"""
    host = Clocked(home)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert ycluster.program_trouble(host, state) == ""
    path: Path = getattr(state.files, part)
    whole = path.read_bytes()
    if fault == "a folder":
        path.unlink()
        path.mkdir()
        assert not ycluster.is_armed(host, state)
        return
    faulty = {"cut": whole[:200], "empty": b"", "altered": whole[:-99] + b"\0" * 99}
    path.write_bytes(faulty[fault])
    if (part, fault) == ("launcher", "altered"):
        path.write_bytes(whole.split(b"\n", 3)[2] + b"\n")  # its comment alone
    assert "whole" in ycluster.program_trouble(host, state) or part == "launcher"
    assert not ycluster.is_armed(host, state)
    assert ycluster.is_armed(host, arm_timers(host, state)) and path.read_bytes() == whole


@pytest.mark.parametrize(
    "action, held_by",
    [
        ("stop", "a hang"),
        ("pause", "a hang"),
        ("suspend", "a hang"),
        ("teardown", "a hang"),
        ("stop", "an expiry"),
    ],
)
def test_a_deadline_waits_for_no_lock_that_is_held_without_end(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
    held_by: str,
) -> None:
    """The VM ends without it, or is paused where nothing in it is to be lost; its files stay.

    An expiry that is under way is left to its second try. (21.2.2)
    """
    late = int(NOW) + 300 if held_by == "an expiry" else None
    state = made(cache, expires_at=int(NOW) - 5, on_expiry=action, retry_at=late)
    vm = stand_in(processes, state.files)
    state.files.disk.touch()
    before = sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")
    waited = []

    def held(host: Host, files: Files, *, by: str, patience: float, wait: float = 0.0) -> None:
        waited.append(patience)
        raise ycluster.Busy("demo: another ycluster is working on it")

    monkeypatch.setattr(ycluster, "reap", held)
    with pytest.raises(ycluster.Busy):
        ycluster.reap_in_time(host, state.files, by="systemd", patience=7.0)
    assert waited == [ycluster.LOCK_BOUND, 7.0] and ycluster.LOCK_BOUND <= 30
    is_kept = held_by == "an expiry" or action in ("pause", "suspend")
    assert (vm.poll() is None) is is_kept
    if is_kept:
        expected = "running" if held_by == "an expiry" else "paused"
        wait_for(expected, lambda: ycluster.vm_status(host, state.files) == expected)
    left = sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")
    assert {*before} - {*left} <= {"demo.pid", "demo.qmp"} and state.files.disk.name in left
    assert ycluster.load_state(state.files).expires_at == int(NOW) - 5


@pytest.mark.parametrize("end, how", [("_halt", "guest-shutdown"), ("_freeze", "SIGSTOP")])
def test_of_two_that_stop_a_vm_the_second_waits(
    host: Clocked, cache: Path, processes: Processes, end: str, how: str
) -> None:
    """Two ladders at once would come to force while the guest still shuts down, or is suspended. (21.2.2)"""
    state = made(cache)
    fd = ycluster.take_flock(host, state.files.stop_lock, timeout=1)
    assert fd is not None
    vm = stand_in(processes, state.files)
    began = host.time
    with ycluster.descriptor(fd):
        assert getattr(ycluster, end)(host, state) == how
    assert (vm.poll() is None) is (end == "_freeze")
    assert host.time >= began + 200, "it waited for its bound"


def test_whoever_waited_for_a_stop_leaves_no_file_of_a_cluster_that_is_gone_by_then(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watcher that waits while a teardown goes through its steps. (21.2.2)"""
    state = made(cache)
    vm = stand_in(processes, state.files, "")
    fd = ycluster.take_flock(host, state.files.stop_lock, timeout=1)
    assert fd is not None

    def torn_down(seconds: float) -> None:
        host.time += seconds
        if vm.poll() is None:
            vm.kill()
            vm.wait()
            for path in cache.iterdir():
                path.unlink()
            os.close(fd)

    monkeypatch.setattr(host, "sleep", torn_down)
    assert ycluster._halt(host, state) == "" and list(cache.iterdir()) == []


def test_a_watcher_that_is_ended_while_it_waits_for_a_stop_leaves_no_file(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teardown ends it after it has removed the files; it makes the lock anew until then. (21.2.2)"""
    files = made(cache).files
    files.disk.touch()
    cancel = ycluster.cancel_timers

    def ended(host: Host, state: State) -> None:
        fd = ycluster.take_flock(host, files.stop_lock, timeout=1)  # and has no time to remove it
        assert fd is not None
        os.close(fd)
        cancel(host, state)

    monkeypatch.setattr(ycluster, "cancel_timers", ended)
    assert cli("teardown", "--name", "demo").code == 0 and list(cache.iterdir()) == []


@pytest.mark.parametrize("which", ["--name demo", "--name demo --by watcher", "--all"])
def test_a_suspend_costs_a_watcher_one_interval_at_most(
    cli: Cli, home: Path, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:  # fmt: skip
    files, deadline = Files(cache, "demo"), int(NOW) + 3600

    class Suspended(Clocked):
        """A host that is suspended for an hour in its first sleep, which goes on after it."""

        def sleep(self, seconds: float) -> None:
            if which == "--all" and ycluster.load_state(files).reaped:
                raise ycluster.Interrupted("enough")  # it would watch on
            super().sleep(seconds + (3600 if self.time == NOW else 0))

    monkeypatch.setattr(ycluster, "Host", lambda *args: Suspended(home))
    made(cache, expires_at=deadline, timers=(ArmedTimer("watcher", "watch", deadline),))
    assert cli("lifetime", "watch", *which.split()).code == (130 if which == "--all" else 0)
    reaped = ycluster.load_state(files).reaped
    assert reaped and 0 <= reaped.at - deadline <= ycluster.WATCH_INTERVAL


def test_the_watcher_reaps_at_the_deadline_and_leaves(
    watched: Files, cache: Path, home: Path
) -> None:
    deadline = int(time.time()) + 1
    arm_watcher(cache, home, expires_at=deadline)
    assert poll(lambda: not ycluster.flock_held(watched.watch_lock))
    state = ycluster.load_state(watched)
    assert state.expires_at is None and state.timer is None
    assert state.reaped and state.reaped.by == "watcher" and state.reaped.at >= deadline


def test_a_glance_at_its_lock_does_not_turn_the_watcher_away(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`flock_held` takes a shared lock for microseconds; the watcher may come up in just that moment."""
    state = made(
        cache, expires_at=int(NOW) + 5, timers=(ArmedTimer("watcher", "watch", int(NOW) + 5),)
    )
    glance = ycluster.try_flock(state.files.watch_lock, shared=True)
    assert glance is not None

    def sleep(seconds: float) -> None:
        if host.time == NOW:
            os.close(glance)
        host.time += seconds

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.run_watcher(host, state.files)
    assert ycluster.load_state(state.files).reaped is not None


def test_a_watcher_that_leaves_gives_up_its_lock_before_an_arming_can_look(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, real, seen = made(cache), ycluster.locked, []

    @contextlib.contextmanager
    def observed(host: Host, path: Path, **options: Any) -> Iterator[None]:
        with real(host, path, **options):
            yield
        seen.append(ycluster.flock_held(state.files.watch_lock))

    monkeypatch.setattr(ycluster, "locked", observed)
    ycluster.run_watcher(host, state.files)
    assert seen == [False]


def test_a_watcher_stays_whatever_fails_and_whatever_becomes_of_the_sidecar_while_the_vm_runs(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch, processes: Processes
) -> None:
    """A watcher that ends guards nothing. Its first reap fails; then the sidecar is rubbish."""
    ends = int(NOW) + 5
    state = made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    whole, reap, tries = state.files.sidecar.read_bytes(), ycluster.reap, []
    vm = stand_in(processes, state.files)

    def failing(*args: Any, **options: Any) -> None:
        tries.append(host.now())
        if len(tries) == 1:
            raise OSError(5, "Input/output error")
        reap(*args, **options)

    def sleep(seconds: float) -> None:
        host.time += max(1.0, seconds)
        assert host.time < NOW + 600
        if len(tries) == 1:
            rubbish = state.files.sidecar.read_bytes() == b"{"
            state.files.sidecar.write_bytes(whole if rubbish else b"{")

    monkeypatch.setattr(ycluster, "reap", failing)
    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.run_watcher(host, state.files)
    assert len(tries) == 2 and vm.wait(60) == 0
    reaped = ycluster.load_state(state.files).reaped
    assert reaped and reaped.by == "watcher"


@pytest.mark.parametrize("cause", ["torn down and made again", "its lock file was removed"])
def test_a_watcher_whose_place_another_has_taken_leaves(
    host: Clocked, cache: Path, processes: Processes, cause: str
) -> None:
    """Six quick teardown and provision cycles left seven watchers of one cluster. (21.2.1)"""
    files = made(cache, expires_at=int(NOW) + 3600).files
    vm = processes.start("", "-name", "demo", "-pidfile", str(files.pidfile))
    files.pidfile.write_text(str(vm.pid))
    fd = ycluster.try_flock(files.watch_lock)
    assert fd is not None
    watcher = ycluster.Watcher(host, files, "watcher")
    assert not watcher._has_ended(fd) and watcher.vm is not None
    files.watch_lock.unlink()
    assert not watcher._has_ended(fd)  # nobody else watches yet
    if cause == "torn down and made again":
        vm.kill()
        vm.wait()
        assert not watcher._has_ended(fd) and watcher.vm is None  # the state file is there yet
        new = processes.start("", "-name", "demo", "-pidfile", str(files.pidfile))
        files.pidfile.write_text(str(new.pid))
    other = ycluster.try_flock(files.watch_lock)
    assert other is not None
    assert watcher._has_ended(fd)
    os.close(other)


def test_only_one_watcher_watches(host: Clocked, cache: Path) -> None:
    state = made(cache, expires_at=int(NOW) - 5, timers=(ArmedTimer("watcher", "watch", int(NOW)),))
    first = ycluster.try_flock(state.files.watch_lock)
    assert first is not None
    ycluster.run_watcher(host, state.files)
    assert ycluster.load_state(state.files) == state


# --- what a timer leans on besides its copy


def launch(
    files: Files, *words: str, path: str = "/usr/bin:/bin"
) -> subprocess.CompletedProcess[str]:
    """Run what a timer would start, in the environment that it would have."""
    argv = ["/bin/sh", str(files.launcher), *words]
    return subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True, timeout=60)


def without_a_system_python(files: Files) -> None:
    """A host on which no Python is where distributions have it."""
    text = files.launcher.read_text()
    files.launcher.write_text(re.sub(r"/usr/(local/)?bin/python3", "/nowhere/python3", text))


@pytest.fixture
def launching(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> Memory:
    """The only timer there is: in memory, and one that starts the program when it fires."""
    memory = Memory("memory", log)
    memory.launches = True
    use(monkeypatch, memory)
    return memory


class Armed(Clocked):
    """A host whose program was armed by a Python of its own."""

    python = ""

    def interpreter(self) -> str:
        return self.python


def test_a_timer_whose_python_is_gone_finds_another(home: Path, cache: Path) -> None:
    """A version manager's, or a virtual environment's, is removed; a distribution is upgraded. (20.11)"""
    host, state = Armed(home), made(cache, lifetime="")
    host.python = str(home / "gone" / "python3")
    ycluster.install_program(host, state.files)
    reap = ("lifetime", "reap", "--state", str(state.files.sidecar))
    done = launch(state.files, *reap)
    assert (done.returncode, done.stdout) == (0, "") and "demo:" in done.stderr
    assert ycluster.program_trouble(host, state) == ""

    without_a_system_python(state.files)
    elsewhere = home / "bin"
    elsewhere.mkdir()
    for name, text in (("python3", f'exec {sys.executable} "$@"'), ("rm", 'exec /bin/rm "$@"')):
        (elsewhere / name).write_text(f"#!/bin/sh\n{text}\n")
        (elsewhere / name).chmod(0o755)
    assert "demo:" in launch(state.files, *reap, path=str(elsewhere)).stderr


@pytest.mark.parametrize(
    "python",
    ["exit 1", "exit 127"],
    ids=["too old, or without its library", "not there"],
)
def test_a_timer_that_finds_no_python_says_so_and_is_replaced(
    home: Path, cache: Path, launching: Memory, python: str
) -> None:
    """(20.11)"""
    host = Armed(home)
    host.python = str(home / "python3")
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert ycluster.is_armed(host, state)
    without_a_system_python(state.files)
    Path(host.python).write_text(f"#!/bin/sh\n{python}\n")
    Path(host.python).chmod(0o755)
    nothing = home / "nothing"
    nothing.mkdir()
    bare = Armed(home, PATH=str(nothing))
    assert "Python" in ycluster.timer_trouble(bare, state)
    done = launch(state.files, "lifetime", "reap", path=str(nothing))
    assert done.returncode == 127 and "Python" in state.files.timer_failed.read_text()
    assert "Python" in ycluster.timer_trouble(host, state)
    after = arm_timers(host, state)
    assert after.timers != state.timers and not state.files.timer_failed.exists()
    assert ycluster.is_armed(host, after)


def test_a_timer_whose_last_run_failed_is_told_and_replaced(
    home: Path, cache: Path, launching: Memory
) -> None:
    """(20.11)"""
    host = Clocked(home)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    whole = state.files.sidecar.read_bytes()
    state.files.sidecar.write_text("rubbish")
    failed = launch(state.files, "lifetime", "reap", "--state", str(state.files.sidecar))
    assert failed.returncode == 4
    state.files.sidecar.write_bytes(whole)
    assert "exit 4" in ycluster.timer_trouble(host, state)
    # One that failed to act, and armed its retry, is no such timer.
    assert ycluster.is_armed(host, replace(state, retry_at=DEADLINE))
    (finding,) = ycluster._unenforced(host, state)
    assert (finding.name, finding.level) == ("demo", "failure") and "exit 4" in finding.text
    after = arm_timers(host, state)
    assert after.timers != state.timers and ycluster.is_armed(host, after)


def test_a_program_that_has_grown_is_as_good_a_timer(
    home: Path, cache: Path, launching: Memory
) -> None:
    """A bound of 1 MiB made each timer of a larger program count as broken, and armed it again."""
    host = Clocked(home)
    host._source = host.program_source() + b"# more\n" * (1 << 18)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    assert state.files.program.stat().st_size > ycluster.STATE_SIZE
    assert ycluster.program_trouble(host, state) == ""


def test_a_timer_without_its_launcher_is_replaced(
    home: Path, cache: Path, launching: Memory
) -> None:
    """As those that an earlier version has armed. (20.11)"""
    host = Clocked(home)
    state = arm_timers(host, made(cache, expires_at=DEADLINE))
    state.files.launcher.unlink()
    assert not ycluster.is_armed(host, state)
    assert ycluster.is_armed(host, arm_timers(host, state))


def test_every_module_that_is_imported_late_is_known() -> None:
    """What a reap imports late, a watcher imports before it counts as armed. (20.11)"""
    source = PROGRAM.read_text().split("# === 1 ")[1]
    late = set(re.findall(r"^ +(?:import|from) ([a-z0-9]+)", source, re.MULTILINE))
    of_other_verbs = {
        "argparse",
        "base64",
        "ctypes",
        "difflib",
        "email",
        "gzip",
        "html",
        "http",
        "importlib",
        "io",
        "ipaddress",
        "netrc",
    }
    of_other_verbs |= {"struct", "tarfile", "unicodedata", "urllib", "zlib"}
    assert late - of_other_verbs <= set(ycluster.IMPORTED_LATER)
    codecs = set(re.findall(r'encoding="([^"]+)"', source))
    assert codecs == {"utf-8"}, "any other is a module, too, loaded when it is first asked for"


def test_a_watcher_loads_all_that_a_reap_imports_later(home: Path) -> None:
    code = (
        "import sys, ycluster; from ycluster import Host, Output\n"
        "host = Host({}, Output(sys.stdout, sys.stderr)); ycluster.load_all(host)\n"
        "print(sorted(set(ycluster.IMPORTED_LATER) - set(sys.modules)))"
    )
    argv = [sys.executable, "-c", code]
    ran = subprocess.run(argv, env=IMPORTS, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_the_program_is_read_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade in place changes an archive under a process that runs. (20.22)"""
    host = Clocked(home)
    source = host.program_source()

    class Changed:
        def get_data(self, path: str) -> bytes:
            raise ImportError("the archive has changed")

    monkeypatch.setitem(vars(ycluster), "__loader__", Changed())
    assert host.program_source() == source
    with pytest.raises(ImportError):
        Clocked(home).program_source()


def copied_python(to: Path) -> Path:
    """This Python with a library of its own, which can be taken away."""
    binary = Path(os.path.realpath(sys.executable))
    library = Path(os.path.realpath(os.__file__)).parent
    (to / "bin").mkdir(parents=True)
    copy = to / "bin" / binary.name
    shutil.copy(binary, copy)
    skip = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*", "idlelib")
    shutil.copytree(library, to / "lib" / library.name, ignore=skip, symlinks=False)
    return copy


def test_a_watcher_needs_its_python_no_longer_once_it_is_armed(
    watched: Files, cache: Path, home: Path, tmp_path: Path, processes: Processes
) -> None:
    """The Python that a version manager had is removed; it is to end the VM all the same. (20.11)"""
    python = copied_python(tmp_path / "python")
    host = Host({"HOME": str(home), "PATH": "/usr/bin:/bin"}, Clocked(home).output)
    vm = stand_in(processes, watched)
    ycluster.install_program(host, watched)
    deadline = int(time.time()) + 3
    made(cache, expires_at=deadline, timers=(ArmedTimer("watcher", "watch", deadline),))
    env = host.child_env()
    words = ["lifetime", "watch", "--state", str(watched.sidecar), "--by", "watcher"]
    argv = [str(python), "-I", "-S", str(watched.program), *words]
    with subprocess.Popen(argv, env=env, cwd="/", stdout=subprocess.DEVNULL) as watcher:
        assert poll(lambda: ycluster.flock_held(watched.watch_lock))
        shutil.rmtree(tmp_path / "python")
        assert vm.wait(60) == 0 and watcher.wait(60) == 0
    after = ycluster.load_state(watched)
    assert after.reaped and after.reaped.by == "watcher"


# --- the watcher, whatever becomes of the files


@pytest.mark.parametrize("lost", ["folder", "sidecar", "rubbish", "opened to all"])
def test_a_watcher_ends_a_vm_whose_files_are_lost_at_the_deadline_it_knows(
    home: Path, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """`rm -rf ~/.cache/*`, and a sidecar that is damaged. A disk that is left is kept. (20.12)

    So is a VM whose folder others can write to since it was started. (21.3.1)"""

    shown = []

    class Hasty(Clocked):
        """Its time runs once the files are lost, a hundred times as fast as the process."""

        def tell_terminals(self, text: str) -> None:
            shown.append(text)

        def now(self) -> float:
            return NOW + (time.monotonic() - began[0]) * 100 if began else NOW

        def monotonic(self) -> float:
            return self.now()

        def sleep(self, seconds: float) -> None:
            time.sleep(seconds / 100)

    began: list[float] = []
    host, files = Hasty(home), Files(cache, "demo")
    ends = int(NOW) + 100
    made(
        cache, expires_at=ends, on_expiry="teardown", timers=(ArmedTimer("watcher", "watch", ends),)
    )
    for path in (files.disk, files.ssh_key, files.known_hosts):
        path.write_text(path.name)
    vm = stand_in(processes, files)
    logins = []

    def log_in(host: Host, argv: list[str], **_: Any) -> None:
        key = next(word for word in argv if "IdentityFile=" in word).partition("=")[2]
        logins.append((Path(key).read_text(), Path(key).stat().st_mode & 0o777))

    def stop(host: Host, of: Files, held: ycluster.Vm, poweroff: Any, *_: Any) -> str:
        monkeypatch.setattr(Host, "run", log_in)
        poweroff()
        assert host.now() >= ends and held.pid == vm.pid
        vm.kill()
        vm.wait()
        return "ssh poweroff"

    monkeypatch.setattr(ycluster, "stop_vm", stop)
    watcher = ycluster.Watcher(host, files, "watcher")
    looks = []

    def then_it_is_lost() -> bool:
        looks.append(1)
        if len(looks) == 2:
            began.append(time.monotonic())
            if lost == "folder":
                shutil.rmtree(cache)
            elif lost == "sidecar":
                files.sidecar.unlink()
            elif lost == "opened to all":
                cache.chmod(0o777)
            else:
                files.sidecar.write_text("rubbish")
        return look()

    look = watcher._look
    monkeypatch.setattr(watcher, "_look", then_it_is_lost)
    watcher.run()
    assert logins == [("demo-ssh", 0o600)] and vm.poll() is not None
    assert lost == "folder" or files.disk.read_text() == "demo.qcow2"
    assert len(shown) == 1 and "demo" in shown[0]  # the user's terminals are told (21.1.1)
    assert len(host.log.getvalue().splitlines()) <= 4


def test_a_watcher_needs_no_room_to_stop_a_vm_whose_files_are_lost(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /tmp is full, it can't log in: the other steps follow."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Host, "tell_terminals", lambda self, text: None)
    monkeypatch.setattr("tempfile.mkdtemp", full)
    files = Files(cache, "demo")
    made(cache, expires_at=int(NOW) - 5, timers=(ArmedTimer("watcher", "watch", int(NOW) - 5),))
    vm = stand_in(processes, files)
    watcher = ycluster.Watcher(host, files, "watcher")
    assert watcher._look()
    shutil.rmtree(cache)
    watcher.run()
    assert vm.wait(60) is not None


def test_a_hold_of_a_vm_whose_files_are_lost_is_looked_at_again_later_and_has_its_grace(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked at each second, and the VM ended with the hold."""
    shown: list[str] = []
    monkeypatch.setattr(Host, "tell_terminals", lambda self, text: shown.append(text))
    files, me = Files(cache, "demo"), processes.start("")
    hold = ycluster.Hold(
        pid=me.pid,
        began=ycluster.process_start(me.pid),
        boot=host.boot_id(),
        since=int(NOW),
        until=None,
        command="make",
        undo="",
    )
    due = int(NOW) - 5
    made(cache, expires_at=due, holds=(hold,), timers=(ArmedTimer("watcher", "watch", due),))
    vm = stand_in(processes, files)
    watcher = ycluster.Watcher(host, files, "watcher")
    assert not watcher._has_ended(None)
    shutil.rmtree(cache)
    assert not watcher._has_ended(None)
    watcher._act()
    assert watcher._act() == int(NOW) + ycluster.HOLD_LOOK
    me.kill()
    me.wait()
    host.time += ycluster.HOLD_LOOK
    watcher._act()
    assert vm.poll() is None and len(shown) == 1 and "it is stopped in" in shown[0]
    assert watcher._act() == int(host.now()) + ycluster.HOLD_GRACE
    host.time += ycluster.HOLD_GRACE
    watcher._act()
    assert vm.wait(60) is not None


def test_a_watcher_that_is_asked_stops_a_vm_whose_files_are_lost_before_its_deadline(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It alone can still log in to the guest; one whose state can be read is not stopped. (21.1.1)"""
    monkeypatch.setattr(Host, "tell_terminals", lambda self, text: None)
    files, ends = Files(cache, "demo"), int(NOW) + 7200
    made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files)
    watcher = ycluster.Watcher(host, files, "watcher")
    watcher.ask()
    assert not watcher._has_ended(None) and watcher._act() == ends and vm.poll() is None
    shutil.rmtree(cache)
    assert not watcher._has_ended(None) and watcher._act() == ends and vm.poll() is None
    watcher.ask()
    watcher.run()
    assert vm.wait(60) == 0 and host.now() < ends


@pytest.mark.parametrize("lost", ["damaged", "moved"])
def test_a_watcher_knows_the_deadline_that_was_written_last(
    host: Clocked, cache: Path, processes: Processes, lost: str
) -> None:
    """It may have been set, and the file be lost, between two of its looks."""
    files, ends = Files(cache, "demo"), int(NOW) + 7200
    state = made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files, f"lock = open({str(files.vm_lock)!r}, 'w')\n{GIVES_WAY}")
    assert poll(files.vm_lock.exists)
    watcher = ycluster.Watcher(host, files, "watcher")
    assert watcher._is_needed() and watcher._act() == ends
    ycluster.save_state(replace(state, expires_at=ends - 3600))
    if lost == "damaged":
        files.sidecar.write_text('{"garb')
    else:
        cache.rename(cache.with_name("moved"))
    assert watcher._is_needed() and watcher._act() == ends - 3600 and vm.poll() is None


def test_a_watcher_whose_reap_fails_tries_again_ever_later(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk nothing is saved, not even when to try again: each try is a line of the log."""
    files, ends = Files(cache, "demo"), int(NOW) + 100
    state = made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files)
    tries = []

    def fails(*_: Any, **__: Any) -> None:
        tries.append(host.now())
        if tries[-1] > NOW + 7200:
            vm.kill()
            vm.wait()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ycluster, "reap_in_time", fails)
    watcher = ycluster.Watcher(host, files, "watcher")
    monkeypatch.setattr(
        watcher, "_has_ended", lambda fd: not watcher._is_needed() or vm.poll() is not None
    )
    watcher.run()
    assert 8 <= len(tries) <= 30
    assert watcher.failed[0] == ends
    ycluster.save_state(replace(state, expires_at=ends + 1))  # another end waits for nothing
    watcher._look()
    with pytest.raises(OSError, match="No space"):
        watcher._act()


def test_an_unreadable_sidecar_is_said_once_and_not_at_every_look(
    host: Clocked, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """720 lines an hour fill a disk. (20.25)"""
    files, ends = Files(cache, "demo"), int(NOW) + 7200
    made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files, "")
    watcher = ycluster.Watcher(host, files, "watcher")
    watcher._look()
    files.sidecar.write_text("{")

    def sleep(seconds: float) -> None:
        host.time += seconds
        if host.time > NOW + 3600:
            vm.kill()
            vm.wait()

    monkeypatch.setattr(host, "sleep", sleep)
    watcher.run()
    assert 1 <= len(host.log.getvalue().splitlines()) <= 4


@pytest.mark.parametrize("size", [0, 1 << 20, 20 << 20])
def test_a_console_that_is_written_for_ever_is_cut_to_its_end(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    """11 GB in a night, of a guest that wants to. (21.4.4)"""
    files, ends = Files(cache, "demo"), int(NOW) + 7200
    made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files, "")
    files.console.touch(0o600)
    os.truncate(files.console, size)
    with files.console.open("ab") as console:
        console.write(b"the end")

    def sleep(seconds: float) -> None:
        vm.kill()
        vm.wait()
        files.sidecar.unlink()

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.Watcher(host, files, "watcher").run()
    assert files.console.read_bytes().endswith(b"the end")
    now = files.console.stat().st_size
    assert now == size + 7 or (size > ycluster.CONSOLE_SIZE and 7 < now <= 1 << 20)


def test_no_other_file_is_cut_in_the_place_of_the_console(cache: Path, tmp_path: Path) -> None:
    files, other = Files(cache, "demo"), tmp_path / "other"
    other.touch()
    os.truncate(other, 20 << 20)
    files.console.symlink_to(other)
    ycluster.cut_console(files)  # of the link itself, which is short
    assert other.stat().st_size == 20 << 20


def test_a_watcher_stands_by_and_leaves_the_deadline_to_the_timer_for_a_while(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    """Beside every VM; where the timer does not act, it does. (20.12)"""
    memory = Memory("memory", log)
    use(monkeypatch, memory)
    ends = int(NOW) + 100
    state = arm_timers(host, made(cache, expires_at=ends))
    vm = stand_in(processes, state.files)
    ycluster.Watcher(host, state.files, "watcher").run()
    assert vm.wait(60) == 0
    reaped = ycluster.load_state(state.files).reaped
    assert reaped and reaped.by == "watcher"
    assert ends + ycluster.WATCH_GRACE <= reaped.at <= ends + ycluster.WATCH_GRACE + 10


def watcher_without_a_state(
    host: Clocked, cache: Path, processes: Processes, ends: int
) -> tuple[ycluster.Watcher, subprocess.Popen[bytes]]:
    """One that has seen its VM, whose state file can't be read since; and the VM."""
    state = arm_timers(host, made(cache, expires_at=ends))
    vm = stand_in(processes, state.files)
    watcher = ycluster.Watcher(host, state.files, "watcher")
    watcher._look()
    state.files.sidecar.write_text("rubbish")
    return watcher, vm


def test_no_deadline_is_left_to_a_timer_that_cannot_read_it_either(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    """Found by a random history: the files were removed, and systemd's timer had nothing to act on. (21.1.1)"""
    use(monkeypatch, Memory("memory", log))
    ends = int(NOW) + 100
    watcher, vm = watcher_without_a_state(host, cache, processes, ends)
    asked = []
    monkeypatch.setattr(
        ycluster, "stop_vm", lambda *args, **_: asked.append(host.time) or vm.kill() or vm.wait()
    )
    watcher.run()
    assert ends <= asked[0] <= ends + ycluster.WATCH_INTERVAL


def test_a_watcher_without_a_state_tries_a_stop_that_fails_ever_later(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    """Each try tells the user's terminals. (25)"""
    use(monkeypatch, Memory("memory", log))
    ends = int(NOW) + 100
    watcher, _ = watcher_without_a_state(host, cache, processes, ends)
    watcher.readable = watcher._look()
    tries: list[float] = []

    def stuck(*args: object, **_: object) -> str:
        tries.append(host.time)
        raise ycluster.YclusterError("no room")

    monkeypatch.setattr(ycluster, "stop_vm", stuck)
    host.time = float(ends)
    while host.time < ends + 600:
        with contextlib.suppress(ycluster.YclusterError):
            host.time = watcher._act()
            continue
        host.time += ycluster.WATCH_INTERVAL
    waits = [after - before for before, after in zip(tries, tries[1:])]
    assert 4 < len(tries) < 30 and waits[-1] > 60, waits


def test_a_watcher_that_stands_by_leaves_with_its_vm(
    host: Clocked,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    log: list[str],
) -> None:
    """(20.12)"""
    use(monkeypatch, Memory("memory", log))
    state = arm_timers(host, made(cache, expires_at=int(NOW) + 7200))
    vm = stand_in(processes, state.files, "")

    def sleep(seconds: float) -> None:
        host.time += seconds
        vm.kill()
        vm.wait()

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.Watcher(host, state.files, "watcher").run()
    assert host.time < NOW + 60 and ycluster.load_state(state.files).expires_at == NOW + 7200


@pytest.mark.parametrize("slept, sets", [(3600, 1), (1, 0)])
def test_a_watcher_sets_the_guests_clock_after_the_host_has_slept(
    home: Path,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    slept: int,
    sets: int,
) -> None:
    """A guest stands still while its host is suspended. (20.20)"""

    class Laptop(Clocked):
        suspended = 0

        def monotonic(self) -> float:
            return self.time - self.booted - self.suspended

    host, files, ends = Laptop(home), Files(cache, "demo"), int(NOW) + 7200
    made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),))
    vm = stand_in(processes, files, "")
    seen = []
    monkeypatch.setattr(ycluster, "set_guest_clock", lambda host, state: seen.append(state.name))

    def sleep(seconds: float) -> None:
        host.time += seconds
        if host.suspended == 0:
            host.time += slept
            host.suspended = slept
        elif host.time > NOW + slept + 60:
            vm.kill()
            vm.wait()
            files.sidecar.unlink()

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.Watcher(host, files, "watcher").run()
    assert seen == ["demo"] * sets


def test_a_watcher_of_a_cluster_that_is_torn_down_makes_no_file_there(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a lock, for a moment."""
    ends = int(NOW) + 7200
    files = made(cache, expires_at=ends, timers=(ArmedTimer("watcher", "watch", ends),)).files
    locks = []
    monkeypatch.setattr(
        ycluster, "cluster_lock", lambda *args, **options: locks.append(1) or pytest.fail("a lock")
    )

    def sleep(seconds: float) -> None:
        host.time += seconds
        for path in (files.sidecar, files.copy, files.watch_lock):
            path.unlink()

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.run_watcher(host, files)
    assert locks == [] and tree(cache) == {}


def test_arming_any_timer_sees_that_a_watcher_stands_beside(
    watched: Files, cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    """(20.12)"""
    memory = Memory("memory", log)
    use(monkeypatch, memory, ycluster.WatcherTimer())  # type: ignore[arg-type]
    host = Host({"HOME": str(home), "PATH": "/usr/bin:/bin"}, Clocked(home).output)
    state = made(cache, expires_at=int(time.time()) + 3600)
    with ycluster.locked(host, state.files.lock, timeout=5):
        state = arm_timers(host, state)
    assert state.timer and state.timer.backend == "memory"
    assert ycluster.flock_held(watched.watch_lock) and ycluster.is_watched(host, state)
    for pid in watchers(watched):
        os.kill(pid, signal.SIGKILL)
    assert poll(lambda: not ycluster.flock_held(watched.watch_lock))
    with ycluster.locked(host, state.files.lock, timeout=5):
        arm_timers(host, state)  # the next command replaces it
    assert ycluster.flock_held(watched.watch_lock)


# --- systemd's argv, as the real one would be called


def test_systemd_is_given_calendar_time_and_an_explicit_environment(
    home: Path, tmp_path: Path
) -> None:
    seen = []

    class Recorder(Clocked):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            seen.append(list(argv))
            return subprocess.CompletedProcess(tuple(argv), 0, "Sat 2025-11-22 09:26:59 UTC\n", "")

    files = Files(tmp_path / "a %h b", "demo")
    host = Recorder(home, SECRET="hush")
    unit = ycluster.SystemdTimer().arm(host, files, ycluster.parse_time("2025-11-22T09:26:59Z"))
    argv = seen[0]
    assert (
        f"--unit={unit}" in argv
        and "--on-calendar=2025-11-22 09:26:59 UTC" in argv
        and "--collect" in argv
    )
    assert (
        "--timer-property=AccuracySec=1s" in argv
        and f"--setenv=HOME={home}" in argv
        and "hush" not in str(argv)
    )
    # It fires when the clock is set, is gone once it has, and what it re-arms outlives its service.
    assert "--on-clock-change" in argv and "--timer-property=RemainAfterElapse=no" in argv
    assert "--property=KillMode=process" in argv
    assert argv[-3:-1] == ["/bin/sh", "-c"] and shlex.split(argv[-1])[-6:] == [
        "lifetime",
        "reap",
        "--state",
        str(files.sidecar),
        "--by",
        "systemd",
    ]
    ycluster.SystemdTimer().arm(host, files, int(NOW) - 100)
    assert "--on-calendar=2025-11-22 08:26:43 UTC" in seen[2]  # a time in the past would never fire


@pytest.mark.parametrize("said", ["", "n/a", "\n"])
def test_a_systemd_timer_without_a_time_is_not_armed(home: Path, cache: Path, said: str) -> None:
    """One that has fired still waits for the clock to be set."""

    class Answers(Clocked):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            ran.append(argv)
            return subprocess.CompletedProcess(tuple(argv), 0, said, "")

    ran: list[Any] = []
    files = Files(cache, "demo")
    files.program.touch()
    ident = unit_name(files, DEADLINE, "ab12")
    timer = ArmedTimer("systemd", ident, DEADLINE)
    assert not ycluster.SystemdTimer().armed(Answers(home), files, timer)
    with refused(ycluster.YclusterError, "no time"):
        ycluster.SystemdTimer().arm(Answers(home), files, DEADLINE)
    [unit] = [word for word in ran[-3] if word.startswith("--unit=")]
    assert ran[-1] == ["systemctl", "--user", "stop", f"{unit.partition('=')[2]}.timer"]


def test_a_unit_of_the_place_that_the_files_were_moved_from_is_not_armed(
    home: Path, cache: Path, tmp_path: Path
) -> None:
    """It would find no state file there. (21.2.1)"""

    class Answers(Clocked):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            return subprocess.CompletedProcess(tuple(argv), 0, "Sat 2025-11-22 16:26:40 UTC", "")

    files, moved = Files(cache, "demo"), Files(tmp_path / "moved", "demo")
    timer = ArmedTimer("systemd", unit_name(files, DEADLINE, "ab12"), DEADLINE)
    armed = [ycluster.SystemdTimer().armed(Answers(home), of, timer) for of in (files, moved)]
    assert armed == [True, False]


def work(host: Clocked, output: Output, seconds: int, what: str) -> None:
    """A job that says so every second."""
    steps = ycluster.Steps(output, host.monotonic)
    for _ in range(seconds):
        host.sleep(1)
        steps.waiting(what)
    steps.done("all")


def test_a_log_gets_whole_lines_and_not_too_many(host: Clocked) -> None:
    work(host, host.output, 40, "a wait")
    said = host.log.getvalue()
    lines = said.splitlines()
    assert folded(lines[-1]) == "all (40.0 s)" and 2 < len(lines) < 6
    assert not set("\r\x1b") & set(said) and said.endswith("\n")


def test_the_output_of_a_live_terminal_is_wiped(host: Clocked) -> None:
    leader, follower = pty.openpty()
    shown = b""
    with open(follower, "w") as stderr, open(leader, "rb", buffering=0) as terminal:
        work(host, Output(io.StringIO(), stderr), 5, "a wait " + "x" * 200)
        while not shown.endswith(b" s)\r\n"):
            shown += terminal.read(65536)
    first, *drawn, last = shown.decode().split("\r\x1b[K")
    assert first == "" and len(drawn) == 5 and all("a wait" in line for line in drawn)
    # One that wraps, or ends its line, could not be wiped.
    assert max(map(len, drawn)) < ycluster.columns() and "\n" not in "".join(drawn)
    assert folded(last) == "all (5.0 s)" and last.endswith("\r\n")


def test_a_watch_waits_for_the_verb_that_is_giving_the_cluster_its_deadline(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start in another terminal holds the lock: its deadline is saved only in a moment."""
    state = made(cache)
    starting = ycluster.try_flock(state.files.lock)
    assert starting is not None

    def sleep(seconds: float) -> None:
        host.time += seconds
        if not os.path.exists(f"/proc/self/fd/{starting}"):
            return
        ycluster.save_state(replace(state, expires_at=int(NOW) + 5))
        os.close(starting)

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.watch_one(host, state.files, by="hand")
    assert ycluster.load_state(state.files).reaped is not None


@pytest.mark.parametrize("away, left", [(5, 1), (0.5, 0.5)])
def test_what_is_armed_again_after_its_deadline_gets_a_fresh_budget(
    live: Live, away: float, left: float
) -> None:
    """It ended at once, and with onExpiry: teardown its disk was gone."""
    live.starts(lifetime="1h", max_idle="", on_expiry="teardown")
    ycluster.disarm(live.host, live.files)
    live.host.time += away * 3600
    ycluster.arm(live.host, ycluster.Selector(state_file=live.files.sidecar))
    assert live.state.expires_at == live.host.time + left * 3600
    ycluster.reap(live.host, live.files, by="hand")
    assert live.runs and live.files.disk.exists()


def test_a_vm_that_was_continued_behind_our_back_gets_a_deadline(live: Live) -> None:
    """By QEMU's monitor, after its expiry had paused it: it ran for ever."""
    live.starts(lifetime="8h", max_idle="", warn="0", on_expiry="pause")
    live.fires()
    ycluster.reap(live.host, live.files, by="hand")
    paused = live.state
    assert (paused.expires_at, live.timer.standing) == (None, {}) and live.runs
    assert not ycluster._needs_reap(live.host, paused)
    with ycluster.find_vm(live.host, live.files) as vm:
        assert vm
        ycluster.resume_vm(live.host, live.files, vm)
    assert ycluster._needs_reap(live.host, paused)
    ycluster.reap(live.host, live.files, by="hand")
    assert live.state.expires_at == live.host.time + 8 * 3600
    assert list(live.timer.standing.values()) == [live.state.expires_at]
    looked = ycluster.replace(live.state, expires_at=None, max_idle="1h")
    looked = ycluster.watched_from(looked, live.host.clock())
    assert ycluster._needs_reap(live.host, ycluster.save_state(looked)), "a look alone is no end"
    ycluster.reap(live.host, live.files, by="hand")
    assert live.state.expires_at == live.host.time + 8 * 3600


def test_what_a_resume_starts_anew_is_the_budget_and_not_the_machine(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory that was written after it would have been loaded with another accelerator."""
    launch = live.launch
    monkeypatch.setattr(
        ycluster, "launch", lambda *words: ycluster.replace(launch(*words), ran_with="kvm")
    )
    live.starts(lifetime="1h", max_idle="", warn="", on_expiry="pause")
    live.fires()
    assert live.state.expires_at is None
    ycluster.resume(live.host, ycluster.Selector(state_file=live.files.sidecar))
    assert (live.state.ran_with, live.state.started_at) == ("kvm", live.host.time)


@pytest.mark.parametrize("run_budget, seconds", [("30m", 1800), ("", 3600), ("2h", 7200)])
def test_what_its_expiry_has_paused_goes_on_with_a_fresh_budget(
    live: Live, run_budget: str, seconds: int
) -> None:
    """`--max-run` counts from then, too, and one of before is over with its run."""
    live.starts(lifetime="1h", run_budget="10m", max_idle="", warn="", on_expiry="pause")
    live.fires()
    live.host.time += 300
    which = ycluster.Selector(state_file=live.files.sidecar)
    ycluster.resume(live.host, which, run_budget=run_budget)
    assert live.state.expires_at == live.host.time + seconds
    assert live.state.started_at == live.host.time  # from which maxTotal counts
    assert live.state.reaped is None and live.state.run_budget == run_budget


@pytest.mark.parametrize("lifetime, seconds", [("1h", 3600), ("", 600)])
def test_what_its_expiry_has_paused_is_armed_by_the_budget_of_its_config(
    live: Live, lifetime: str, seconds: int
) -> None:
    """Or by that of its run, where there is no other."""
    live.starts(lifetime=lifetime, run_budget="10m", max_idle="", warn="", on_expiry="pause")
    live.fires()
    live.host.time += 300
    ycluster.arm(live.host, ycluster.Selector(state_file=live.files.sidecar))
    assert live.state.expires_at == live.host.time + seconds


def test_what_the_monitor_has_continued_gets_the_budget_of_its_run_again(live: Live) -> None:
    """It has no other: without it, it would run for ever."""
    live.starts(lifetime="", run_budget="2h", max_idle="", warn="", on_expiry="pause")
    live.fires()
    ycluster.ask_qemu(live.host, live.files, "cont")
    ycluster.reap(live.host, live.files, by="memory")
    assert live.state.expires_at == live.host.time + 7200


def test_what_was_paused_unused_is_disarmed_for_good(live: Live) -> None:
    live.starts(max_idle="30m", on_expiry="pause", warn="")
    while not live.state.reaped:
        live.fires()
    which = ycluster.Selector(state_file=live.files.sidecar)
    ycluster.arm(live.host, which)
    assert live.state.reaped is None
    ycluster.disarm(live.host, live.files)
    ycluster.resume(live.host, which)
    assert live.state.disarmed


def test_a_watcher_of_lost_files_warns_of_no_deadline_that_nobody_can_extend(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did at each look, and ran onWarn."""
    shown: list[str] = []
    monkeypatch.setattr(Host, "tell_terminals", lambda self, text: shown.append(text))
    live.monitor = USED
    live.starts(max_idle="30m", lifetime="2h", warn="1h", on_warn="echo >>warned")
    watcher = ycluster.Watcher(live.host, live.files, "watcher")
    assert not watcher._has_ended(None)
    for path in (live.files.sidecar, live.files.copy):
        path.write_text("rubbish")
    for _ in range(20):
        assert not watcher._has_ended(None)
        watcher._act()
        live.host.time += 300
    assert shown == [] and live.host.time > NOW + 4000


def test_a_state_that_came_back_from_before_the_last_start_tears_nothing_down(live: Live) -> None:
    """Its deadline is another run's."""
    live.starts(lifetime="8h", max_idle="", warn="", on_expiry="teardown")
    yesterday = live.files.sidecar.read_bytes()
    live.host.time += 9 * 3600
    for process in live.processes.started:
        process.kill()
        process.wait()
    ycluster.stop(live.host, live.files)
    ycluster._boot(live.host, live.state)
    live.files.sidecar.write_bytes(yesterday)
    ycluster.reap(live.host, live.files, by="memory")
    assert live.runs and "older than what was saved last" in live.host.log.getvalue()
    assert live.state.expires_at == live.host.time + 8 * 3600


def test_a_clock_that_was_set_back_makes_no_state_out_of_date(live: Live) -> None:
    """Its times move along, and those of the copy are of before."""
    live.starts(lifetime="8h", max_idle="", warn="", on_expiry="teardown")
    live.host.set_clock(-120)
    live.host.time += 8 * 3600 + 1
    ycluster.reap(live.host, live.files, by="memory")
    assert not live.files.disk.exists()


def test_a_vm_that_a_full_disk_holds_up_stays_as_its_expiry_has_left_it(live: Live) -> None:
    """QEMU calls its state io-error, and not paused."""
    held_up = monitor("io-error").replace('{"stop": "paused", "cont": "running"}', "{}")
    assert held_up != monitor("io-error")
    live.monitor = held_up
    live.starts(lifetime="8h", max_idle="", warn="0", on_expiry="pause")
    live.fires()
    assert live.state.reaped and not ycluster._needs_reap(live.host, live.state)


def test_a_watcher_stays_beside_a_vm_whose_state_says_that_it_is_stopped(live: Live) -> None:
    """It came back from when it was; and the VM gets a deadline."""
    live.starts(lifetime="8h", max_idle="", warn="")
    ycluster.save_state(ycluster.stopped(ycluster.replace(live.state, timers=())))
    watcher = ycluster.Watcher(live.host, live.files, "watcher")
    assert not watcher._has_ended(None)
    watcher._act()
    assert live.state.expires_at == live.host.time + 8 * 3600
    ycluster.disarm(live.host, live.files)
    assert watcher._has_ended(None), "and not where it was disarmed"


def test_what_was_disarmed_counts_as_used_once_it_is_armed_again(live: Live) -> None:
    """It ended at once, six minutes after the disarm."""
    live.starts(lifetime="", max_idle="30m", warn="10m")
    while live.host.time - NOW < 25 * 60:
        live.fires()
    ycluster.disarm(live.host, live.files)
    live.host.time += 6 * 60
    ycluster.arm(live.host, ycluster.Selector(state_file=live.files.sidecar))
    assert ycluster.unused_end(live.state) == live.host.time + 30 * 60


def test_a_copy_of_a_cachedir_takes_away_no_timer_of_the_original(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state names the same unit; that of a cacheDir that was moved goes."""
    ahead = int(NOW) + 10**8
    (tmp_path / "bin").mkdir()
    calls, shown = tmp_path / "calls", tmp_path / "shown"
    script = f'#!/bin/sh\necho "$@" >>{calls}; case "$*" in *show*) cat {shown};; esac\n'
    (tmp_path / "bin" / "systemctl").write_text(script)
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    files = with_disk(cache, expires_at=ahead, started_at=1).files
    unit = ycluster.unit_name(files, ahead, "abcd")
    timers = (ArmedTimer("systemd", unit, ahead),)
    ycluster.save_state(ycluster.replace(ycluster.load_state(files), timers=timers))
    shown.write_text(f"argv[]=/bin/sh x.sh lifetime reap --state {files.sidecar} --by systemd ;")
    for name in ("copy", "other"):
        shutil.copytree(cache, tmp_path / name)
        (tmp_path / name).chmod(0o700)
    assert cli("stop", "--state", tmp_path / "copy" / "demo.json").code == 0
    assert f"stop {unit}.timer" not in calls.read_text()
    files.sidecar.unlink()
    assert cli("stop", "--state", tmp_path / "other" / "demo.json").code == 0
    assert f"stop {unit}.timer" in calls.read_text()
