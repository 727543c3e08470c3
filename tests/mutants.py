#!/usr/bin/env python3
"""Mutants of ycluster.py: small edits that break a promise, with the unit tests that must notice.

python tests/mutants.py [-k WORD]     in an environment that has tests/requirements.txt

For maintainers, when code moves or tests change; CI doesn't run it. A mutant whose old text does
not stand in ycluster.py exactly once is STALE: to be brought up to date, not to be left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = (ROOT / "ycluster.py").read_text()
BOUND = 120.0  # seconds for the tests of one mutant

# The promise; a text of ycluster.py, what takes its place and breaks it; what of tests/unit fails.
# fmt: off
MUTANTS: list[tuple[str, str, str, str]] = [
    # --- 4 host effects
    ("a file that replaces another is private", "data: bytes, *, mode: int = 0o600)", "data: bytes, *, mode: int = 0o644)", "test_state.py"),
    ("a program is given no more time than its bound", "until = self.monotonic() + timeout\n        with", "until = self.monotonic() + timeout * 1000\n        with", "test_host.py"),
    ("a program that is out of time is killed", "process.kill()", "pass", "test_host.py"),
    ("a program that fails is an error", "if check and done.returncode != 0:", "if check and done.returncode > 1:", "test_host.py"),
    ("no child gets the whole environment", "{name: self.environ[name] for name in kept if self.environ.get(name)}", "self.environ", "test_faults.py::test_no_secret_gets_into_a_timer_a_log_or_a_sidecar"),
    ("the user's manager is found from cron", 'env["XDG_RUNTIME_DIR"] = runtime', "pass", "test_host.py"),
    ("a look at a lock keeps no other look out", "(fd := try_flock(path, shared=True))", "(fd := try_flock(path))", "test_state.py"),
    ("a download of a wrong digest is refused", 'if wanted not in ("", digest):', "if False:", "test_machine.py test_k3s.py"),
    ("a download that was cut off is not taken for whole", "if total and file.tell() != total:", "if total and file.tell() > total:", "test_machine.py"),
    ("an answer that is the whole goes to the beginning of the file", 'have if getattr(source, "status", 0) == 206 else 0', "have", "test_machine.py"),
    ("a terminal that takes no messages is left alone", "found.st_mode & 0o020", "found.st_mode & 0o200", "test_telling.py"),

    # --- 7 config
    ("a variable that is not set is refused", "lambda match: environ[match[1]], value)", 'lambda match: environ.get(match[1], ""), value)', "test_config.py"),
    ("provision fills the variables in", "expand_variables(config.registries, host.environ)\n    sweep", "config.registries\n    sweep", "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),
    ("no credential of a registry is kept in the sidecar", "state = replace(state, imported=_refuse_existing(files))", 'state = replace(state, imported=_refuse_existing(files), extra={"registries": registries})', "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),

    # --- 8 state sidecar
    ("the default cacheDir is always looked into", "places.append(host.cache_home())", "pass", "test_cli.py"),
    ("a sidecar of a later version is refused", '(version := data.pop("version", None)) != 1', '(version := data.pop("version", None)) in (None, 0)', "test_state.py"),
    ("fields that are unknown here are written back", "to_json({**data, **state.extra})", "to_json(data)", "test_state.py"),
    ("a cluster is where its sidecar lies", 'values["cache_dir"] = str(path.parent)', 'values.setdefault("cache_dir", data.get("cacheDir", str(path.parent)))', "test_state.py"),
    ("an expiry that is not said is a stop", '_action(value) or "stop"', '_action(value) or "teardown"', "test_state.py"),
    ("a pipe in the place of a sidecar is refused", "if not files.sidecar.is_file():", "if files.sidecar.is_dir():", "test_state.py"),
    ("a teardown that keeps the disk keeps it", "self.pidfile, self.qmp, self.vm_lock,", "self.pidfile, self.disk, self.qmp, self.vm_lock,", "test_cli.py"),
    ("a data disk goes into the sidecar", 'data_disk=str(config.data_disk or ""),', "", "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),
    ("the budget goes into the sidecar", "lifetime=config.lifetime.max_run,", "", "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),
    ("the ports that QEMU chose are chosen again at the next start", "if forward.host == 0),", "if forward.host != 0),", "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),

    # --- 9 lifetime decisions
    ("it is due from the deadline on", "if clock.now < state.expires_at:", "if clock.now <= state.expires_at:", "test_lifetime.py"),
    ("nothing is torn down after a reboot", 'state.boot_id not in ("", clock.boot_id)', 'state.boot_id == ""', "test_lifetime.py"),
    ("a clock that is set moves the deadline along, not away", "min(max(0, at + step), _LATEST)", "min(max(0, at - step), _LATEST)", "test_lifetime.py"),
    ("what ntp does moves no deadline", "< CLOCK_STEP:", "< 1:", "test_lifetime.py"),
    ("--until shortens nothing", "max(state.expires_at, until)", "until", "test_lifetime.py"),
    ("an extension of what is overdue counts from now", "later = max(state.expires_at, int(clock.now))", "later = state.expires_at", "test_lifetime.py"),
    ("no extension passes the cap", "expires > max(cap, state.expires_at):", "expires > max(cap, state.expires_at, clock.now + 10**9):", "test_lifetime.py"),
    ("the cap counts from the start", "cap = (state.started_at or int(clock.now))", "cap = int(clock.now)", "test_lifetime.py"),
    ("an extension ends a retry", "replace(state, expires_at=expires, retry_at=None, boot_id", "replace(state, expires_at=expires, boot_id", "test_lifetime.py"),
    ("a start ends a retry", "expires_at=expires, retry_at=None, boot_id=clock.boot_id,\n", "expires_at=expires, boot_id=clock.boot_id,\n", "test_lifetime.py"),
    ("a stop ends a retry", "replace(state, expires_at=None, retry_at=None)", "replace(state, expires_at=None)", "test_lifetime.py"),
    ("a retry is waited for", "max(state.expires_at, state.retry_at or 0)", "state.expires_at", "test_lifetime.py"),
    ("a failed expiry is tried again within 15 minutes", "min(max(late / 2, 60.0), 900.0)", "max(late / 2, 60.0)", "test_lifetime.py"),
    ("a budget is rounded up", "expires = -(-(seconds * 10**9 + nanoseconds * parts) // (parts * 10**9))", "expires = (seconds * 10**9 + nanoseconds * parts) // (parts * 10**9)", "test_lifetime.py"),
    ("the user is warned before the deadline, not at it", "moment = state.expires_at - -(-lead // 10**9)", "moment = state.expires_at - lead // 10**12", "test_lifetime.py"),

    # --- 10 timers
    ("a private copy is of this version", "or files.program.read_bytes() != source:", ":", "test_timers.py"),
    ("systemd unloads what has run", '"--quiet", "--collect",', '"--quiet",', "test_timers.py"),
    ("systemd is on time", '"--timer-property=AccuracySec=1s", ', "", "test_timers.py"),
    ("systemd fires when the clock is set", '"--on-clock-change", ', "", "test_timers.py"),
    ("a timer of systemd that has fired is gone", ', "--timer-property=RemainAfterElapse=no"', "", "test_timers.py"),
    ("what a reap of systemd re-arms outlives its service", '"--property=KillMode=process",', "", "test_timers.py"),
    ("systemd is told that the time is UTC", ":%Y-%m-%d %H:%M:%S} UTC", ":%Y-%m-%d %H:%M:%S}", "test_timers.py"),
    ("systemd is given no time that has passed", "moment = max(deadline, int(host.now()) + 3)", "moment = deadline", "test_timers.py"),
    ("a systemd that ends at the logout is no guard", 'and (host.attempt(lingers, timeout=30) or "").strip() != "yes":', "and False:", "test_timers.py"),
    ("a timer of systemd that never fires is no guard", "if not self._waits(host, unit):", "if False:", "test_timers.py"),
    ("cancelling a timer ends no reap that runs", 'f"{timer.id}.timer"], timeout=30, check=False)', 'f"{timer.id}.service"], timeout=30, check=False)', "test_timers.py"),
    ("an at job waits its early minute out", '"reap", "--wait", f"{AT_EARLY:.0f}s"', '"reap"', "test_timers.py"),
    ("at is told that the time is UTC", '{"TZ": "UTC0", "SHELL"', '{"SHELL"', "test_timers.py"),
    ("a job of an atd that is gone is no guard", "files.program.exists() and self.daemon_runs and any", "files.program.exists() and any", "test_timers.py"),
    ("with no atd there is no timer of at", "if not self.daemon_runs:", "if False:", "test_timers.py"),
    ("an arming that failed is said", 'raise YclusterError(f"at did not say which job it made: {answer.stderr.strip()}")', 'return ""', "test_timers.py"),
    ("a watcher that did not come up is no guard", "if host.monotonic() > give_up:\n                    raise TimedOut", "if host.monotonic() > give_up:\n                    return 'watch'\n                    raise TimedOut", "test_timers.py"),
    ("a timer that is saved is not taken for one that stands", "and not fired and is_armed(host, state):", "and not fired:", "test_timers.py"),
    ("a timer that has fired does not count", "and not fired and is_armed(host, state):", "and is_armed(host, state):", "test_timers.py"),
    ("the warning's timer comes with the deadline's", "if host.now() < warning < deadline:", "if False:", "test_timers.py"),
    ("an old timer goes after the new one is saved", "saved = save_state(replace(state, timer=mark))\n    cancel_timer(host, state.files, state.timer)\n    return saved", "cancel_timer(host, state.files, state.timer)\n    return save_state(replace(state, timer=mark))", "test_timers.py"),
    ("where nothing can be armed the deadline is saved", "save_state(replace(state, timer=None))\n    why", "why", "test_timers.py"),
    ("a warning's timer goes with the other", "filter(None, (old.id, old.warning))", "filter(None, (old.id,))", "test_timers.py"),

    # --- 11 gcloud flags
    ("the cloud deletes and does not only stop", "--instance-termination-action=DELETE", "--instance-termination-action=STOP", "test_gcp.py"),
    ("what the cloud would refuse is refused", "if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS:", "if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS + 1:", "test_gcp.py"),
    ("a data disk that would go is warned of", 'if getattr(config, "data_disk", None):', "if False:", "test_gcp.py"),
    ("an instance that does not run has no deadline", 'if made["status"] == "RUNNING":', 'if made["status"] != "TERMINATED":', "test_gcp.py"),
    ("the cloud's own reckoning goes first", '.get("terminationTimestamp") or until', '.get("x") or until', "test_gcp.py"),

    # --- 12 QMP
    ("an answer is matched to its question", '.get("id") != self.serial:', '.get("id") is None:', "test_qmp.py"),
    ("a refusal of QEMU's is an error", 'if "error" in message:', 'if "errors" in message:', "test_qmp.py"),
    ("no monitor is waited for without end", "self.sock.settimeout(max(0.001, until - self.monotonic()))", "self.sock.settimeout(5.0)", "test_qmp.py"),

    # --- 13 VM process
    ("a VM that can't be seen is not taken for stopped", 'raise YclusterError(f"{files.name}: its QEMU runs, and can\'t be seen from here", hint=hint)', "vm = None", "test_vm.py"),
    ("a VM is known by its own pidfile", "return os.path.realpath(pidfile) in map(os.path.realpath, pidfiles(pid))", "return bool(pidfiles(pid))", "test_vm.py"),
    ("whoever has a stale pid is left alone", "return os.path.realpath(pidfile) in map(os.path.realpath, pidfiles(pid))", "return True", "test_vm.py"),
    ("a VM whose pidfile is lost is found", "for pid in named + (pids() if flock_held(files.vm_lock) else []):", "for pid in named:", "test_vm.py"),
    ("a pause that QEMU does not answer is made by a signal", "send_signal(vm.pidfd, signal.SIGSTOP)", "pass", "test_vm.py"),
    ("a resume lets the guest go on", 'ask_qemu(host, files, "cont")', "pass", "test_vm.py"),
    ("a pause goes to the guest", 'ask_qemu(host, files, "stop")', 'ask_qemu(host, files, "query-status")', "test_vm.py"),
    ("a paused guest is woken to be shut down", 'qmp.execute("cont")  #', 'qmp.execute("query-status")  #', "test_vm.py"),
    ("a guest is asked to shut down before anything else is done", 'qmp.execute("system_powerdown")', 'qmp.execute("quit")', "test_vm.py"),
    ("a VM that outlives all of it is an error", 'raise YclusterError(f"{files.name}: QEMU (pid {vm.pid}) is alive after SIGKILL", hint="look into the kernel\'s log")', 'return "SIGKILL"', "test_vm.py"),

    # --- 14 QEMU machine
    ("forwards listen where the config says", "hostfwd=tcp:{state.bind_address}:", "hostfwd=tcp::", "test_machine.py"),
    ("the guest writes nothing into its seed", '"label": "CIDATA", "read-only": True', '"label": "CIDATA"', "test_machine.py"),
    ("the guest has its data disk", 'argv += ["-blockdev", _qcow2("data"', 'seed = ["-blockdev", _qcow2("data"', "test_machine.py"),
    ("QEMU is on the disk's own format", '"driver": "qcow2", "node-name": node', '"driver": "raw", "node-name": node', "test_machine.py"),
    ("QEMU's monitor is the user's alone", "files.qmp.chmod(0o600)", "pass", "test_machine.py"),
    ("the console is the user's alone", "os.close(os.open(files.console, os.O_WRONLY | os.O_CREAT, 0o600))", "pass", "test_machine.py"),
    ("the guest's hardware outlives an upgrade of QEMU", "if not state.machine:", "if True:", "test_machine.py"),
    ("KVM is not believed without its trial", "if done.returncode != 33:", "if done.returncode > 33:", "test_machine.py"),

    # --- 15 guest
    ("a guest boots without its data disk", "ext4 defaults,nofail,", "ext4 defaults,", "test_machine.py"),
    ("ssh is strict", 'strict = "yes" if', 'strict = "no" if', "test_machine.py"),
    ("the first host key of a sibling's VM is held to", 'else "accept-new"', 'else "no"', "test_machine.py"),
    ("ssh goes by the cluster's own known_hosts", """"-o", f'UserKnownHostsFile="{known}"', """, "", "test_machine.py"),
    ("nobody logs in with a password", '"lock_passwd": True', '"lock_passwd": False', "test_machine.py"),
    ("the credentials of registries are root's alone in the guest", '"permissions": "0600", "content": to_json(registries)', '"permissions": "0644", "content": to_json(registries)', "test_machine.py"),
    ("keys are new for each cluster", 'remove(key)\n        remove(key.with_name(key.name + ".pub"))', "if key.exists():\n            continue", "test_machine.py"),
    ("a boot is waited for no longer than its bound", "if host.monotonic() > until:\n                why", "if host.monotonic() > until + 10**6:\n                why", "test_machine.py"),
    ("a kernel that panicked is not waited for", 'if "end Kernel panic - not syncing" not in console_tail(state.files, 1):', "if True:", "test_machine.py"),

    # --- 16 k3s
    ("a k3s without a digest is refused", 'if name.startswith("k3s") and not digest:', "if False:", "test_k3s.py"),
    ("a page is not taken for the install script", 'if name == "install.sh" and not', 'if name == "install" and not', "test_k3s.py"),
    ("a list that may be wrong is not kept", "remove(listing)  #", "pass  #", "test_k3s.py"),
    ("a guest that gives no answer is not taken for one without k3s", '!= "absent\\n":\n        return said is not None', '!= "absent\\n":\n        return True', "test_k3s.py"),
    ("k3s is not installed over what is there", 'if (said := in_guest(host, state, ask, waiting)) != "absent\\n":', "if (said := in_guest(host, state, ask, waiting)) is None:", "test_k3s.py"),

    # --- 17 kubeconfig
    ("a context is that of one cluster", "if state.context == config.context and state.files != files:", "if state.context == config.context and state.name == files.name:", "test_faults.py::test_a_port_or_a_context_that_is_taken_is_told_before_anything_is_made"),
    ("a context of the user's is not replaced", "if not cluster == entry.get(\"user\") == name or not re.match", "if not cluster == entry.get(\"user\") or not re.match", "test_k3s.py"),
    ("a cluster of the user's that has our name is not replaced", 'elif not known and (name in view["clusters"] or name in view["users"]):', "elif False:", "test_k3s.py"),
    ("only what is ours is taken out of the kubeconfig", '.get(state.context, {}).get("cluster") == name:', ".get(state.context, {}):", "test_k3s.py"),
    ("the user's current context stays", """if not _kubectl(host, Path(host.environ.get("KUBECONFIG") or file), "view", "-o", "jsonpath={.current-context}"):""", "if True:", "test_k3s.py"),
    ("the first backup of the kubeconfig is never overwritten", """if file.exists() and not (backup := file.with_name(f"{file.name}.before-ycluster")).exists():""", """if file.exists() and (backup := file.with_name(f"{file.name}.before-ycluster")):""", "test_k3s.py"),
    ("a teardown knows what went into the kubeconfig", "state = save_state(replace(state, kubeconfig=str(file)))  #", "state = replace(state, kubeconfig=str(file))  #", "test_k3s.py"),

    # --- 18 disk images
    ("an image that disks build on can't be written to", "part.chmod(0o400)", "part.chmod(0o600)", "test_machine.py"),
    ("an image is kept by its own digest", "return part.replace(images / digest)", "return part.replace(images / (config.image_sha256 or 'image'))", "test_machine.py"),
    ("a disk that builds on another is refused", 'if "backing-filename" in info or', 'if "backing" in info or', "test_appliance.py"),
    ("a disk is never smaller than its image", "elif not state.imported and wanted < size:", "elif not state.imported and wanted > size << 10:", "test_machine.py"),
    ("an imported disk is not made smaller", "if state.imported and wanted > size:", "if state.imported:", "test_appliance.py"),
    ("a cacheDir can be moved", "base = image.relative_to(state.cache_dir)  #", "base = image  #", "test_machine.py"),
    ("a data disk that is there is never formatted", "if path.exists():\n        return\n    path.parent", "path.parent", "test_appliance.py"),
    ("of two that make a data disk the first wins", "os.link(part, path)", "os.replace(part, path)", "test_appliance.py"),
    ("what Compute Engine imports is whole GiB", "-(-end >> 30) << 30", "end", "test_appliance.py"),

    # --- 19 commands
    ("of two clusters none is guessed", "if len(found) == 1:", "if found:", "test_cli.py"),
    ("a bad sidecar hides no other", "except StateError as error:\n            if os.path.lexists(files.sidecar):\n                host.output.warn(str(error))\n    return found", "except StateError as error:\n            host.output.warn(str(error))\n            break\n    return found", "test_cli.py"),
    ("a verb goes by the clock of now", "state = adjusted(saved, host.clock())", "state = saved", "test_histories.py::test_histories_that_must_be_among_them"),
    ("what is shown is by the clock of now", "return adjusted(load_state(files), host.clock())", "return load_state(files)", "test_histories.py::test_histories_that_must_be_among_them"),
    ("a cluster is known whatever kills its provision", "save_state(state)  # the first", "pass  # the first", "test_faults.py::test_a_provision_that_is_killed_while_it_makes_the_disk_is_known"),
    ("a list sees the clusters of other places", "remember_cache_dir(host, files.cache_dir)\n        try:", "try:", "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential"),
    ("a provision that failed leaves nothing", "_erase(host, state, keep_disk=bool(state.imported))", "pass", "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_guard"),
    ("a provision that failed leaves an imported disk", "_erase(host, state, keep_disk=bool(state.imported))", "_erase(host, state)", "test_appliance.py"),
    ("a provision that failed after its VM ran leaves the disk under it", "if not running(files):\n                _erase", "if True:\n                _erase", "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_guard"),
    ("ports are looked at before anything is made", "_check_ports(host, state)\n    if state.data_disk:", "if state.data_disk:", "test_faults.py::test_a_port_or_a_context_that_is_taken_is_told_before_anything_is_made"),
    ("a sibling's disk is not half made", "bool(state.image) and state.started_at is None", "state.started_at is None", "test_cli.py"),
    ("what has booted is not half made", "bool(state.image) and state.started_at is None", "bool(state.image) and state.started_at is not None", "test_cli.py"),
    ("a disk that no cluster claims is not overwritten", "(path == files.disk and path.exists())", "False", "test_cli.py"),
    ("the timer stands before the guest runs", "launch(host, arm_timer(host, save_state(state)))", "arm_timer(host, launch(host, save_state(state)))", "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_guard"),
    ("a guest that did not come to run leaves no deadline", "disarm_timer(host, stopped(load_state(state.files)), None)\n        raise", "raise", "test_histories.py::test_histories_that_must_be_among_them"),
    ("an extension arms what is disarmed no more", "if state.disarmed and not anew:", "if False:", "test_faults.py::test_what_is_disarmed_stays_so_when_extended"),
    ("a running cluster that has a budget gets a deadline", "if state.expires_at is None and budget(state.lifetime) is not None:", "if False:", "test_vm.py"),
    ("start refuses a cluster whose data disk is gone", "if state.data_disk and not os.path.exists(state.data_disk):", "if False:", "test_appliance.py"),
    ("a stop clears the deadline", "how = _halt(host, state)\n        disarm_timer(host, stopped(state), None)", "how = _halt(host, state)\n        disarm_timer(host, state, None)", "test_cli.py"),
    ("a guest that is resumed late is not reaped at once", "state.expires_at <= host.now() and not state.disarmed:", "state.expires_at > host.now() and not state.disarmed:", "test_faults.py::test_resume_gives_a_fresh_budget_where_the_old_one_is_used_up_and_only_there"),
    ("a guest is woken after its timer stands", "state = _guarded(host, state)\n        if halted:", "if halted:\n            resume_vm(host, files, vm)\n        state = _guarded(host, state)\n        if halted:", "test_vm.py"),
    ("a paused guest that does not go on is told", 'if (now := vm_status(host, files)) != "running":', "if False:", "test_vm.py"),
    ("an early look reaps nothing and arms", "state = arm_timer(host, state, fired=state.timer is not None and state.timer.backend == by)", "pass", "test_telling.py"),
    ("the timer that fired early is not counted on", "fired=state.timer is not None and state.timer.backend == by)", "fired=False)", "test_faults.py::test_a_timer_that_came_early_is_armed_anew"),
    ("a warning is given once", 'warned=state.expires_at if decision.do == "warn" else state.warned', "warned=state.warned", "test_telling.py"),
    ("whoever is warned can extend at once", 'if decision.do == "warn":  # without the lock: whoever is warned may want to extend\n        _warn', '    if decision.do == "warn":\n            _warn', "test_faults.py::test_whoever_is_warned_can_extend_from_there"),
    ("a command that warns has its bound", "timeout=max(1.0, min(NOTICE_TIMEOUT, left))", "timeout=max(1.0, left)", "test_telling.py"),
    ("a second try stands before the first", "state = arm_timer(host, replace(state, retry_at=again), fired=True)", "state = arm_timer(host, state, fired=True)", "test_faults.py::test_a_second_try_stands_before_the_first_and_only_a_success_takes_it_away"),
    ("a second try is armed, and not only written down", "state = arm_timer(host, replace(state, retry_at=again), fired=True)", "state = save_state(replace(state, retry_at=again))", "test_faults.py::test_a_second_try_stands_before_the_first_and_only_a_success_takes_it_away"),
    ("a reap goes on where no second try can be armed", "except (YclusterError, OSError) as error:\n        host.output.warn(f\"{state.name}: no second try", "except ZeroDivisionError as error:\n        host.output.warn(f\"{state.name}: no second try", "test_faults.py::test_where_no_second_try_can_be_armed_the_first_is_made_all_the_same"),
    ("what never ran is not torn down", "and not (how or state.ran_with) else action", "and not how and state.ran_with else action", "test_vm.py"),
    ("what an expiry did is written down", "disarm_timer(host, replace(stopped(state), reaped=record), None)", "disarm_timer(host, stopped(state), None)", "test_cli.py"),
    ("an expiry that failed is an error", 'raise YclusterError(f"{state.name}: {action} {done}, again at {local_time(again)}: {error}") from error', "pass", "test_telling.py"),
    ("the next command spares the cluster that is meant", "(files for files in discover(host) if files != spare)", "discover(host)", "test_cli.py"),
    ("the next command arms what has lost its timer", "if every or lost or wake_time(state) <= host.now():", "if every or wake_time(state) <= host.now():", "test_faults.py::test_the_next_command_arms_what_has_lost_its_timer_and_reaps_what_has_outlived_it"),
    ("the next command reaps what is overdue", "if every or lost or wake_time(state) <= host.now():", "if every or lost:", "test_faults.py::test_the_next_command_arms_what_has_lost_its_timer_and_reaps_what_has_outlived_it"),
    ("an extension is armed", "state = _guarded(host, save_state(state))\n            log_event", "state = save_state(state)\n            log_event", "test_telling.py"),
    ("a dry run changes nothing", "if not dry_run:", "if True:", "test_telling.py"),
    ("a watcher outlives any failure", "except Exception as error:  # whatever it is, a watcher that ends guards nothing", "except YclusterError as error:", "test_timers.py"),
    ("a watcher stays with a VM whose sidecar can't be read", "return files.sidecar.exists() and running(files)", "return False", "test_timers.py"),
    ("status tells a guard that is gone", 'stands["backend"] if stands["armed"] else', 'stands["backend"] if stands["backend"] else', "test_faults.py::test_status_counts_on_no_timer_that_is_gone"),
    ("doctor tells a deadline without a guard", 'if due_time(state) < float("inf") and not is_armed(host, state):', "if False:", "test_telling.py"),
    ("doctor takes no guard for a leftover", "(serves[1] in ours or not os.path.exists(serves[1]))", "serves[1]", "test_telling.py"),
    ("doctor fails where something is wrong", 'if any(finding.level == "failure" for finding in found) else 0', "if False else 0", "test_telling.py"),
    ("a disk under a running VM is not exported", "if running(files):\n            hint = f\"`ycluster prepare-export", "if False:\n            hint = f\"`ycluster prepare-export", "test_appliance.py"),
    ("an export overwrites nothing", "if os.path.lexists(bundle) and (not bundle.is_dir() or any(bundle.iterdir())):", "if os.path.lexists(bundle) and not bundle.is_dir():", "test_appliance.py"),
    ("an import is held to its checksums", "cwd=disk.parent, check=False).returncode:", "cwd=disk.parent, check=False).returncode > 1:", "test_appliance.py"),
    ("an import replaces no cluster", "_refuse_existing(files)\n    sums =", "sums =", "test_appliance.py"),
    # --- 20 CLI
    ("what other programs write for us is private", "os.umask(0o077)", "os.umask(0o022)", "test_faults.py::test_every_verb_leaves_files_and_directories_private"),
]
# fmt: on


def copy_to(folder: Path, text: str) -> None:
    """The tree as it stands, untracked files with it, with another ycluster.py."""
    argv = ["git", "ls-files", "-zco", "--exclude-standard"]
    listing = subprocess.run(argv, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    for name in filter(None, os.fsdecode(listing).split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / "ycluster.py").write_text(text)


def tried(text: str, tests: str) -> str:
    """What the tests say of a program."""
    with tempfile.TemporaryDirectory(prefix="m-") as name:  # short, as sockets' paths are
        folder, log = Path(name), Path(name) / "log"
        copy_to(folder, text)
        argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-xq"]
        argv += [f"--basetemp={folder}/t", *(f"tests/unit/{test}" for test in tests.split())]
        env = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        env["YCLUSTER_EXAMPLES"] = "quick"
        with log.open("w") as to:
            options: Any = {"cwd": name, "env": env, "stdout": to, "stderr": to}
            process = subprocess.Popen(argv, start_new_session=True, **options)
        try:
            status = process.wait(BOUND)
        except subprocess.TimeoutExpired:
            return "TIMEOUT"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and whatever a test has left behind
            process.wait()
        said = log.read_text(errors="replace")
    if status not in (0, 1):  # no test could run, as with a mutant that is no Python
        return f"BROKEN\n{said}"
    failed = re.findall(r"^(?:FAILED|ERROR) tests/unit/(\S+)", said, re.MULTILINE)
    return f"killed by {' '.join(failed)}" if status else "ALIVE"


def judged(mutant: tuple[str, str, str, str]) -> str:
    promise, old, new, tests = mutant
    stale = f"STALE: it stands there {PROGRAM.count(old)} times"
    verdict = tried(PROGRAM.replace(old, new), tests) if PROGRAM.count(old) == 1 else stale
    print(f"{promise}: {verdict}", flush=True)
    return verdict.split()[0].rstrip(":")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries the mutants of ycluster.py.")
    parser.add_argument("-k", metavar="WORD", default="", help="those whose promise or test has it")
    word = parser.parse_args().k
    chosen = [mutant for mutant in MUTANTS if word in mutant[0] or word in mutant[3]]
    tests = sorted({test for mutant in chosen for test in mutant[3].split()})
    with ThreadPoolExecutor(2) as pool:  # each waits for a process
        for test, verdict in zip(tests, pool.map(partial(tried, PROGRAM), tests)):
            if verdict != "ALIVE":  # then it tells nothing of a mutant
                sys.exit(f"{test}: the program as it is: {verdict}")
        counts = Counter(pool.map(judged, chosen))
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "none")
    return 0 if counts.keys() == {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
