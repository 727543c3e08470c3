#!/usr/bin/env python3
"""Mutants of ycluster.py: small edits that break a promise, with the unit tests that must notice.

python tests/mutants.py [-k WORD] [-j N]     in an environment that has tests/requirements.txt
python tests/mutants.py --stale              anywhere, at once: no test is run

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
MUTANTS: list[tuple[str, str, str, str]] = [
    # --- 2, 7, 15, 18: a start that can't succeed
    (
        "start: ssh's final reason ends the wait",
        "raise fault or NotYet(",
        "raise NotYet(",
        "test_machine.py::test_a_login_that_can_never_succeed_ends_the_wait_at_once_with_ssh_s_reason_and_the_way_out",
    ),
    (
        "start: ssh's passing reason is in the timeout's error",
        "self.reason = str(error)",
        'self.reason = ""',
        "test_machine.py::test_what_may_pass_is_waited_for_and_shown_while_it_lasts_and_in_the_end",
    ),
    (
        "start: a login key is closed to others",
        "os.fchmod(fd, 0o600)",
        "os.fstat(fd)",
        "test_machine.py::test_a_login_key_that_others_can_read_is_closed_to_them_and_lost_known_hosts_are_written",
    ),
    (
        "start: a disk without a boot sector is refused",
        'if head[510:512] != b"\\x55\\xaa":',
        "if False:",
        "test_appliance.py::test_what_is_no_disk_is_refused_by_its_content_wherever_it_is_named",
    ),
    (
        "start: a fetched image that is no disk is not kept",
        "            image_info(host, part, bare)\n",
        "            pass\n",
        "test_appliance.py::test_what_is_no_disk_is_refused_by_its_content_wherever_it_is_named",
    ),
    (
        "start: a lost image is told",
        "if base and not base.is_file():",
        "if False:",
        "test_appliance.py::test_a_lost_image_is_told_by_start_list_and_doctor",
    ),
    (
        "start: a default port that root alone may have is moved",
        "if 0 < host < first:",
        "if False:",
        "test_config.py::test_a_default_port_that_root_alone_may_have_is_moved_and_told",
    ),
    (
        "start: an address of no interface is told as that",
        "if fault == errno.EADDRNOTAVAIL:",
        "if False:",
        "test_machine.py::test_an_address_of_no_interface_is_told_as_that",
    ),
    # --- 3 output
    (
        "a message leaves no live line behind it",
        'self.output.draw("")\n        spent = now',
        "spent = now",
        "test_timers.py::test_the_output_of_a_live_terminal_is_wiped",
    ),
    (
        "the live line takes the place of the one before it",
        'self._write("\\r\\x1b[K" + cleaned',
        'self._write("\\r" + cleaned',
        "test_timers.py::test_the_output_of_a_live_terminal_is_wiped",
    ),
    (
        "the live line is one line",
        "cleaned(masked(text))[:width]",
        "cleaned(masked(text))",
        "test_timers.py::test_the_output_of_a_live_terminal_is_wiped",
    ),
    (
        "the live line is masked before it is cut off",
        "cleaned(masked(text))[:width]",
        "cleaned(masked(text[:width]))",
        "test_faults.py::test_the_live_line_hides_a_password_that_it_would_cut_in_two",
    ),
    (
        "no message has the password of a URL",
        "self._write(cleaned(masked(text)) + end)",
        "self._write(cleaned(text) + end)",
        "test_faults.py::test_the_password_of_a_url_is_used_and_neither_shown_nor_stored",
    ),
    (
        "no state file has the password of a URL",
        "_URL_TEXT = Field(_decode_text, without_password)",
        "_URL_TEXT = Field(_decode_text)",
        "test_faults.py::test_the_password_of_a_url_is_used_and_neither_shown_nor_stored",
    ),
    (
        "a password follows no redirect to another host",
        "if further and known and (further.type, further.host) == (req.type, req.host):",
        "if further and known:",
        "test_k3s.py::test_a_password_does_not_follow_to_another_host",
    ),
    (
        "a log has no live line in it",
        "if self.live:\n            width",
        "if True:\n            width",
        "test_timers.py::test_a_log_gets_whole_lines_and_not_too_many",
    ),
    # --- 4 host effects
    (
        "a file that replaces another is private",
        "data: bytes,\n    *,\n    mode: int = 0o600,",
        "data: bytes,\n    *,\n    mode: int = 0o644,",
        "test_state.py::test_the_sidecar_is_private",
    ),
    (
        "a file that replaces another is on the disk before it takes its name",
        "os.fsync(fd)\n        os.replace",
        "pass\n        os.replace",
        "test_state.py::test_a_save_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name_"
        "after_it",
    ),
    (
        "a file that has replaced another stays after a power cut",
        "        os.fsync(directory)",
        "        pass",
        "test_state.py::test_a_save_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name_"
        "after_it",
    ),
    (
        "a program is given no more time than its bound",
        "until = self.monotonic() + timeout\n        try:\n            while",
        "until = self.monotonic() + timeout * 1000\n        try:\n            while",
        "test_host.py",
    ),
    (
        "a program that is out of time is killed",
        "            return None\n        finally:\n            process.kill()",
        "            return None\n        finally:\n            pass",
        "test_host.py",
    ),
    (
        "a program that fails is an error",
        "if check and done.returncode != 0:",
        "if check and done.returncode > 1:",
        "test_host.py",
    ),
    (
        "no child gets the whole environment",
        "{name: self.environ[name] for name in _INHERITED if self.environ.get(name)}",
        "self.environ",
        "test_faults.py::test_no_secret_gets_into_a_timer_a_log_or_a_sidecar",
    ),
    (
        "the user's manager is found from cron",
        'env["XDG_RUNTIME_DIR"] = runtime',
        "pass",
        "test_host.py",
    ),
    (
        "what is spawned outlives the terminal",
        "start_new_session=True,",
        "",
        "test_timers.py::test_the_watcher_has_a_session_of_its_own",
    ),
    (
        "a look at a lock keeps no other look out",
        "fd = try_flock(path, shared=True)",
        "fd = try_flock(path)",
        "test_state.py::test_a_look_at_a_lock_is_not_taken_for_its_holder",
    ),
    (
        "a lock on a file that has gone keeps nobody out, and is none",
        "return os.dup(fd) if same else None",
        "return os.dup(fd)",
        "test_state.py::test_a_lock_file_that_is_removed_or_replaced_between_open_and_flock_is_"
        "not_held",
    ),
    (
        "a stopped process that holds no lock is left alone",
        "if has_open(pid, path):\n            send_signal",
        "if True:\n            send_signal",
        "test_state.py::test_a_holder_that_was_put_to_sleep_is_woken_and_no_other_sleeper",
    ),
    (
        "a stopped process that holds a lock is continued",
        "if what:\n            wake_holder(path)",
        "if False:\n            wake_holder(path)",
        "test_state.py::test_a_holder_that_was_put_to_sleep_is_woken_and_no_other_sleeper",
    ),
    (
        "a lock file goes with what it guards",
        "if belongs_to and not os.path.lexists(belongs_to) and os.fstat(fd).st_size == 0:",
        "if False:",
        "test_cli.py::test_teardown_removes_the_clusters_files_and_nothing_else test_cli.py::test_"
        "teardown_of_what_is_not_there_is_done_already",
    ),
    (
        "a download of a wrong digest is refused",
        "if wanted and digest != wanted:\n        hint",
        "if False:\n        hint",
        "test_machine.py::test_an_image_with_another_digest_is_refused_and_not_kept",
    ),
    (
        "a download that was cut off is not taken for whole",
        "if total and size != total:",
        "if total and size > total:",
        "test_machine.py::test_a_download_that_was_cut_off_goes_on_where_it_ended",
    ),
    (
        "an answer that is the whole goes to the beginning of the file",
        "start = have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0",
        "start = have",
        "test_machine.py::test_whatever_is_there_of_a_download_the_image_is_right_in_the_end",
    ),
    (
        "a terminal that takes no messages is left alone",
        "status.st_mode & 0o020 != 0",
        "status.st_mode & 0o200 != 0",
        "test_telling.py::test_the_users_own_terminals_are_told_if_they_take_messages",
    ),
    (
        "a folder that others can write to is passed over",
        "if status.st_mode & 0o022:",
        "if False:",
        "test_own_files.py::test_what_another_could_have_written_is_named_and_neither_believed_nor_"
        "changed",
    ),
    (
        "root leaves the owner as it was",
        "os.fchown(made, to.st_uid, to.st_gid)",
        "pass",
        "test_own_files.py::test_root_leaves_the_owner_of_all_that_it_writes",
    ),
    (
        "what has not changed is not written again",
        "    if holds(path, data, mode):\n        return\n",
        "",
        "test_own_files.py::test_a_reap_with_nothing_due_writes_nothing_anew",
    ),
    (
        "no link at a name of ours is followed",
        "flags |= os.O_NOFOLLOW | os.O_NONBLOCK\n    try:\n        "
        "_refuse_foreign(path, os.lstat(path))  # first, as",
        "try:\n        pass  # first, as",
        "test_own_files.py::test_a_log_is_appended_to_and_no_link_is_followed",
    ),
    # --- 5 durations
    (
        "no time is after 2999",
        "if not earliest <= seconds <= _LATEST:",
        "if not earliest <= seconds:",
        "test_state.py::test_a_time_that_could_not_be_written_is_refused",
    ),
    (
        "no time is before 1970",
        "if not earliest <= seconds <= _LATEST:",
        "if not seconds <= _LATEST:",
        "test_state.py::test_a_time_that_could_not_be_written_is_refused",
    ),
    (
        "root by sudo makes nothing in its caller's home",
        "if os.lstat(part).st_uid == int(caller):",
        "if False:",
        "test_access.py::test_under_sudo_nothing_is_changed_in_the_home_of_who_called_it",
    ),
    (
        "kubeconfigs are found from every folder",
        "path = Path(folder, name)",
        'path = Path("/", name)',
        "test_k3s.py::test_other_programs_and_timers_get_the_kubeconfigs_by_their_absolute_paths",
    ),
    # --- 6 YAML subset
    (
        "an invisible character in a text is named",
        "end = src.skip(context.line, pos)\n    _refuse_invisible(src, pos, end)",
        "end = src.skip(context.line, pos)",
        "test_yaml.py::test_invalid_text_is_refused_in_these_words",
    ),
    (
        "an invisible character in quotes is a text",
        "_check_characters(src)\n    start, end",
        "_check_characters(src)\n    _refuse_invisible(src, 0, len(text))\n    start, end",
        "test_yaml.py::test_valid_text_has_the_value_of_the_json_beside_it",
    ),
    (
        "a colon without a space is blamed on its own line",
        "        _refuse_colon_above(src, pos, line_start)\n",
        "",
        "test_yaml.py::test_invalid_text_is_refused_in_these_words",
    ),
    (
        "a colon in a value is not blamed for the line below",
        'pos = end if before.strip(" \\t-") else start',
        "pos = start",
        "test_yaml.py::test_invalid_text_is_refused_in_these_words",
    ),
    # --- 7 config
    (
        "a variable that is not set is refused",
        "return environ[name]",
        'return environ.get(name, "")',
        "test_config.py::test_a_variable_that_is_not_set_is_named",
    ),
    (
        "a variable outside of registries is refused",
        'if "${" in text:',
        "if False:",
        "test_config.py::test_a_variable_elsewhere_is_refused",
    ),
    (
        "a $$ that is part of a password stays",
        'if "${" not in text:',
        "if False:",
        "test_config.py::test_variables_mean_what_they_mean_to_the_sibling",
    ),
    (
        "a name with nothing behind it is handed on",
        "            elif keep_empty:",
        "            elif False:",
        "test_config.py::test_what_is_in_the_registries_is_handed_on_as_it_is",
    ),
    (
        "k3s reads the identity token",
        'auth.setdefault("identity_token", token)',
        'auth.setdefault("identitytoken", token)',
        "test_config.py::test_what_is_in_the_registries_is_handed_on_as_it_is",
    ),
    (
        "an upper limit is no less than the budget",
        "most is not None and most < limit:",
        "most is not None and False:",
        "test_config.py::test_an_upper_limit_below_the_budget_is_refused_at_its_place",
    ),
    (
        "a VM that nothing ends is not shown as one that is off",
        'return "-" if shown["state"] in OFF else "no limit"',
        'return "-"',
        "test_telling.py::test_list_tells_what_nothing_will_end",
    ),
    (
        "a deadline that no timer keeps is shown as that",
        'if not shown.get("armed", True):',
        "if False:",
        "test_telling.py::test_list_tells_what_nothing_will_end",
    ),
    (
        "a budget can be required",
        "if require_budget and not flags:",
        "if False:",
        "test_gcp.py::test_a_budget_can_be_required",
    ),
    (
        "a data disk is no leftover",
        " or os.path.realpath(path) in claimed",
        "",
        "test_telling.py::test_doctor_takes_no_disk_that_may_hold_data_for_a_leftover",
    ),
    (
        "a state that can't be read may claim any disk",
        "if survey.unreadable:",
        "if False:",
        "test_telling.py::test_doctor_takes_no_disk_that_may_hold_data_for_a_leftover",
    ),
    (
        "what is completed is quoted",
        'printf -v word %q "$word"',
        ":",
        "test_completion.py::test_what_is_typed_is_completed",
    ),
    (
        "provision fills the variables in",
        "registries=registries_yaml(config, environ),",
        "registries=used_registries(config),",
        "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential",
    ),
    (
        "no credential of a registry is kept in the sidecar",
        "_claim(host, config, replace(state, imported=imported))",
        '_claim(host, config, replace(state, extra={"registries": registries}))',
        "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential",
    ),
    (
        "a key that may be a misspelt cacheDir is no other key",
        "if not isinstance(keys, dict) or any(_misspells(key, keys) for key in keys):",
        "if not isinstance(keys, dict):",
        "test_config.py::test_where_it_is_not_certain_which_cluster_a_config_is_of_its_error_stays",
    ),
    (
        "a text that is no YAML names its cluster, or none",
        'if "name" not in root.value:',
        "if False:",
        "test_config.py::test_where_it_is_not_certain_which_cluster_a_config_is_of_its_error_stays",
    ),
    (
        "a cacheDir whose value is cut off is not the default",
        "node.value in (None, {}):",
        "node.value == {}:",
        "test_config.py::test_where_it_is_not_certain_which_cluster_a_config_is_of_its_error_stays",
    ),
    (
        "a gateway that the guest can't reach is refused",
        "if ipaddress.ip_address(gateway) not in own.network:",
        "if False:",
        "test_tap.py::test_the_keys_of_a_tap_network_are_checked_all_at_once",
    ),
    (
        "tap mode needs its keys",
        'if getattr(network, attr) == "":',
        "if False:",
        "test_tap.py::test_the_keys_of_a_tap_network_are_checked_all_at_once",
    ),
    (
        "ports break no rule in tap mode",
        "return  # no port is forwarded",
        "pass",
        "test_tap.py::test_ports_and_the_address_they_listen_on_are_ignored_in_tap_mode",
    ),
    # --- 8 state sidecar
    (
        "the sibling's record of a gateway is no cluster",
        "return not path.name.endswith(GATEWAY_STATE)",
        "return True",
        "test_state.py::test_a_json_that_never_was_a_state_file_is_no_cluster_and_a_damaged_one_is",
    ),
    (
        "a file beside a cluster's disk is its state",
        "if any(os.path.lexists(part) for part in parts):",
        "if False:",
        "test_state.py::test_a_json_beside_the_files_of_a_cluster_is_its_state_whatever_it_holds",
    ),
    (
        "a teardown leaves the state of a cluster that is called like a file of its own",
        "if _is_state(other.sidecar) or os.path.lexists(other.lock):",
        "if False:",
        "test_state.py::test_the_state_of_a_cluster_that_is_named_like_anothers_file_is_its_own",
    ),
    (
        "a folder that can't be read is not empty",
        "if error.errno in (*NOT_THERE, errno.ELOOP):",
        "if True:",
        "test_access.py::test_a_folder_that_cannot_be_read_is_not_taken_for_no_clusters",
    ),
    (
        "the default cacheDir is always looked into",
        "places += [host.data_home(), host.sibling_home()]",
        "pass",
        "test_cli.py::test_the_only_cluster_is_the_one_that_is_meant",
    ),
    (
        "a sidecar of a later version is refused",
        "if version != 1:",
        "if version in (None, 0):",
        "test_state.py::test_a_corrupt_sidecar_is_an_error_that_names_file_and_fault",
    ),
    (
        "fields that are unknown here are written back",
        "return {**data, **state.extra}",
        "return data",
        "test_state.py::test_fields_of_others_are_kept_as_they_are",
    ),
    (
        "a cluster is where its sidecar lies",
        'values["cache_dir"] = str(path.parent)',
        'values.setdefault("cache_dir", data.get("cacheDir", str(path.parent)))',
        "test_state.py::test_a_sidecar_is_known_by_where_it_lies",
    ),
    (
        "an expiry that is not said is a stop",
        'if raw == "":\n        return "stop"',
        'if raw == "":\n        return "teardown"',
        "test_state.py::test_an_expiry_that_names_no_action_is_a_stop",
    ),
    (
        "Go's zero time is none",
        'if raw in ("", "0001-01-01T00:00:00Z"):',
        'if raw == "":',
        "test_state.py::test_a_time_that_can_be_read_can_be_written",
    ),
    (
        "a pipe in the place of a sidecar is refused",
        "_refuse_foreign(path, os.lstat(path))  # first",
        "pass  # first",
        "test_state.py::test_what_is_no_file_in_the_place_of_a_sidecar_is_never_opened",
    ),
    (
        "a teardown that keeps the disk keeps it",
        'disk = OwnFile(".qcow2", "with the disk")',
        'disk = OwnFile(".qcow2")',
        "test_cli.py::test_teardown_can_keep_the_disk_and_its_key",
    ),
    (
        "a teardown removes what a killed write has left",
        "return [*going, *self._unfinished({path.name for path in written})]",
        "return going",
        "test_cli.py::test_a_teardown_removes_every_file_that_a_cluster_may_have",
    ),
    (
        "a data disk goes into the sidecar",
        "data_disk=_show_path(config.data_disk),",
        "",
        "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential",
    ),
    (
        "the budget goes into the sidecar",
        "lifetime=config.lifetime.max_run,",
        "",
        "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential",
    ),
    (
        "the ports that QEMU chose are chosen again at the next start",
        "if forward.host == 0),",
        "if forward.host != 0),",
        "test_faults.py::test_a_provision_keeps_what_its_config_says_and_no_credential",
    ),
    (
        "dead links leave the index",
        "if not _is_dead(link):",
        "if True:",
        "test_own_files.py::test_dead_links_leave_the_index_and_come_back_with_their_folder",
    ),
    (
        "what no state file claims is not removed",
        'return bool(kept["name"] == files.name and _WRITER in kept.items())\n'
        "    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):\n"
        "        return False",
        "return True\n    except Exception:\n        return True",
        "test_faults.py::test_a_vm_whose_sidecar_is_gone_is_stopped_by_a_teardown_and_its_disk_stays",
    ),
    (
        "a state file's words are no options",
        "_WORD = text_by(no_option)",
        "_WORD = text_by(str)",
        "test_own_files.py::test_a_state_file_holds_no_word_that_is_an_option",
    ),
    (
        "an address in a state file is no option of ssh",
        '"guest_address": text_by(matching(f"({_IPV4}({_PREFIX})?)?", "an IPv4 address")),',
        '"guest_address": _TEXT,',
        "test_tap.py::test_a_network_that_is_none_is_refused_by_the_name_of_its_field",
    ),
    (
        "the names in a network may be in any case",
        "found = {name.lower(): value for name, value in data.items() if value is not None}",
        "found = {name: value for name, value in data.items() if value is not None}",
        "test_tap.py::test_the_network_of_a_sidecar_is_understood_and_kept_as_it_is",
    ),
    (
        "whatever is in a network is kept",
        "    return network.raw\n",
        '    return {"mode": network.mode, "guestAddress": network.guest_address}\n',
        "test_tap.py::test_whatever_else_is_in_a_network_outlives_a_save",
    ),
    (
        "the address of a guest is dialled without its prefix",
        'self.attachment.guest_address.partition("/")[0]',
        "self.attachment.guest_address",
        "test_tap.py::test_ssh_goes_to_the_guest_itself",
    ),
    (
        "ssh goes to port 22 of a guest with an address of its own",
        "22 if self.guest_address else self.ssh_port",
        "self.ssh_port",
        "test_tap.py::test_it_is_powered_off_by_ssh_at_its_own_address",
    ),
    (
        "the API of a guest with an address of its own is at its port 6443",
        "if self.guest_address:\n            return [6443]",
        "if False:\n            return [6443]",
        "test_tap.py::test_what_leads_to_its_k3s_is_port_6443_of_the_guest",
    ),
    # --- 9 lifetime decisions
    (
        "it is due from the deadline on",
        "return end.at <= now\n    return _looks",
        "return end.at < now\n    return _looks",
        "test_lifetime.py::test_it_is_due_from_the_deadline_on_and_never_before",
    ),
    (
        "a disarmed cluster is left alone",
        "if state.disarmed:\n        return []",
        "if False:\n        return []",
        "test_lifetime.py::test_it_wakes_to_warn_once_and_then_at_the_deadline",
    ),
    (
        "nothing is torn down after a reboot",
        'state.boot_id not in ("", clock.boot_id)',
        'state.boot_id == ""',
        "test_lifetime.py::test_nothing_is_torn_down_after_a_reboot_by_a_clock_that_nothing_"
        "confirms",
    ),
    (
        "a clock that is set moves the deadline along, not away",
        "min(max(0, at + step), _LATEST)",
        "min(max(0, at - step), _LATEST)",
        "test_lifetime.py::test_the_budget_is_the_time_that_passed_whatever_the_clock_was_set_to",
    ),
    (
        "what ntp does moves no deadline",
        "< CLOCK_STEP:",
        "< 1:",
        "test_lifetime.py::test_what_ntp_does_all_day_moves_no_deadline",
    ),
    (
        "--until shortens nothing",
        "return moment if self.exact else max(expires_at, moment)",
        "return moment",
        "test_lifetime.py::test_extend_until_a_moment_is_never_a_shortening",
    ),
    (
        "--from-now counts from when it is asked for",
        "how_far = how_far.fixed(host.now())",
        "how_far = how_far",
        "test_faults.py::test_an_extension_counts_from_when_it_is_asked_for_and_not_from_when_it_gets"
        "_the_lock",
    ),
    (
        "an extension of what is overdue counts from now",
        "return max(expires_at, int(now)) + seconds_up",
        "return expires_at + seconds_up",
        "test_lifetime.py::test_extend_moves_the_deadline_strictly_later_and_beyond_now",
    ),
    (
        "no extension passes the cap",
        "if expires_at > max(cap, state.expires_at or 0):",
        "if expires_at > max(cap, state.expires_at or 0) + 10**9:",
        "test_lifetime.py::test_no_extension_passes_the_cap_and_the_error_names_it",
    ),
    (
        "the cap counts from the start",
        "return (state.started_at or int(clock.now)) + seconds_up(most)",
        "return int(clock.now) + seconds_up(most)",
        "test_lifetime.py::test_the_cap_counts_from_the_start_however_late_the_extension",
    ),
    (
        "a start and an extension end a retry",
        'expires_at=expires_at,\n        retry_at=None,\n        ending="",',
        'expires_at=expires_at,\n        ending="",',
        "test_lifetime.py::test_a_start_an_extension_and_a_stop_end_a_retry",
    ),
    (
        "a stop ends a retry",
        'replace(state, expires_at=None, retry_at=None, ending="", idle=None)',
        'replace(state, expires_at=None, ending="", idle=None)',
        "test_lifetime.py::test_a_start_an_extension_and_a_stop_end_a_retry",
    ),
    (
        "a retry is waited for",
        "Moment(max(deadline, again), DEADLINE)",
        "Moment(deadline, DEADLINE)",
        "test_lifetime.py::test_it_wakes_to_warn_once_and_then_at_the_deadline",
    ),
    (
        "a failed expiry is tried again within 15 minutes",
        "min(max(late / 2, least), 900.0)",
        "max(late / 2, least)",
        "test_lifetime.py::test_retries_come_within_15_minutes_and_never_more_often_as_time_passes",
    ),
    (
        "a budget is rounded up",
        "return -(-nanoseconds // (denominator * 10**9))",
        "return nanoseconds // (denominator * 10**9)",
        "test_lifetime.py::test_the_budget_is_counted_from_the_start_and_rounded_up_to_a_second",
    ),
    (
        "the user is warned before the deadline, not at it",
        "moment = deadline - seconds_up(lead)",
        "moment = deadline - lead // 10**12",
        "test_lifetime.py::test_it_wakes_to_warn_once_and_then_at_the_deadline",
    ),
    (
        "a budget for one run is gone with the next start",
        "return replace(state, run_budget=run_budget)",
        "return replace(state, run_budget=run_budget or state.run_budget)",
        "test_lifetime.py::test_a_budget_for_one_run_is_gone_with_the_next_start",
    ),
    (
        "a budget for one run is within lifetime.maxTotal",
        "(length is None or length > most)",
        "length is not None and length > most",
        "test_lifetime.py::test_a_budget_for_one_run_is_within_max_total",
    ),
    # --- 10 timers
    (
        "a private copy is of this version",
        "        write_file(path, content)\n\n\ndef program_trouble",
        "        path.exists() or write_file(path, content)\n\n\ndef program_trouble",
        "test_timers.py::test_an_old_private_copy_is_replaced_and_a_current_one_kept",
    ),
    (
        "systemd unloads what has run",
        '"--quiet", "--collect",',
        '"--quiet",',
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "systemd is on time",
        '"--timer-property=AccuracySec=1s", ',
        "",
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "systemd fires when the clock is set",
        ', "--on-clock-change",',
        ",",
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "a timer of systemd that has fired is gone",
        ', "--timer-property=RemainAfterElapse=no"',
        "",
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "what a reap of systemd re-arms outlives its service",
        '"--property=KillMode=process",',
        "",
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "systemd is told that the time is UTC",
        'utc_text(ahead, "%Y-%m-%d %H:%M:%S UTC")',
        'utc_text(ahead, "%Y-%m-%d %H:%M:%S")',
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "systemd is given no time that has passed",
        "ahead = max(moment, int(host.now()) + 3)",
        "ahead = moment",
        "test_timers.py::test_systemd_is_given_calendar_time_and_an_explicit_environment",
    ),
    (
        "a systemd that ends at the logout is no guard",
        "if not self._lingers(host):",
        "if False:",
        "test_timers.py::test_a_systemd_that_ends_at_the_logout_is_no_guard",
    ),
    (
        "a timer of systemd that never fires is no guard",
        "if not self._has_a_time(host, unit):",
        "if False:",
        "test_timers.py::test_a_systemd_timer_without_a_time_is_not_armed",
    ),
    (
        "cancelling a timer ends no reap that runs",
        '"stop", f"{unit}.timer"], timeout=30, check=False)',
        '"stop", f"{unit}.service"], timeout=30, check=False)',
        "test_timers.py::test_a_systemd_timer_is_taken_away_and_not_the_reap_that_runs",
    ),
    (
        "an at job waits its early minute out",
        '"reap", "--wait", f"{AT_EARLY:.0f}s")',
        '"reap")',
        "test_timers.py::test_at_is_asked_for_the_minute_of_the_deadline_with_a_job_that_waits",
    ),
    (
        "at is told that the time is UTC",
        '{"TZ": "UTC0", "SHELL"',
        '{"SHELL"',
        "test_timers.py::test_at_is_asked_for_the_minute_of_the_deadline_with_a_job_that_waits",
    ),
    (
        "a job of an atd that is gone is no guard",
        "if not self.daemon_runs:\n            return False",
        "if False:\n            return False",
        "test_timers.py::test_a_job_that_no_atd_will_run_is_no_guard",
    ),
    (
        "with no atd there is no timer of at",
        "if not self.daemon_runs:\n            raise",
        "if False:\n            raise",
        "test_timers.py::test_a_job_that_no_atd_will_run_is_no_guard test_timers.py::test_"
        "programs_that_are_missing_make_a_timer_unusable",
    ),
    (
        "an arming that failed is said",
        'raise YclusterError(f"at did not say which job it made: {answer.stderr.strip()}")',
        'return ""',
        "test_timers.py::test_an_at_that_names_no_job_has_armed_nothing",
    ),
    (
        "a watcher that did not come up is no guard",
        'raise TimedOut(f"the watcher did not come up; see {files.log}")',
        'return "watch"',
        "test_timers.py::test_a_watcher_that_does_not_come_up_is_no_guard",
    ),
    (
        "a watcher that has ended is not waited for",
        " or started.poll() is not None",
        "",
        "test_timers.py::test_a_watcher_that_does_not_come_up_is_no_guard",
    ),
    (
        "a timer that is saved is not taken for one that stands",
        "        and _is_there(host, state, timer)\n    )\n    return ()",
        "    )\n    return ()",
        "test_timers.py::test_a_timer_that_got_lost_is_armed_again",
    ),
    (
        "a timer that has fired does not count",
        "kept = () if renew else _fit_timers",
        "kept = _fit_timers",
        "test_faults.py::test_a_timer_that_came_early_is_armed_anew",
    ),
    (
        "YCLUSTER_TIMER chooses the timer",
        'wanted = host.environ.get("YCLUSTER_TIMER", "")',
        'wanted = ""',
        "test_timers.py::test_timers_are_tried_best_first_and_before_them_what_was_chosen",
    ),
    (
        "a timer is armed by the backend that YCLUSTER_TIMER names",
        "backends = timers_for(host, state)",
        "backends = TIMERS",
        "test_timers.py::test_a_timer_that_the_environment_chooses_takes_the_place_of_a_better_one",
    ),
    (
        "where one backend fails the next is tried",
        'refused.append(f"{backend.name}: {error}")\n            continue',
        "raise",
        "test_timers.py::test_a_timer_that_does_not_work_is_passed_over",
    ),
    (
        "a warning that can't be armed costs the deadline nothing",
        "if moment is first:\n                raise",
        "if True:\n                raise",
        "test_timers.py::test_a_warning_that_cannot_be_armed_costs_the_deadline_nothing",
    ),
    (
        "the deadline's timer is armed before the warning's",
        "first, *others = sorted(",
        "first, *others = reversed(",
        "test_timers.py::test_the_warning_has_a_timer_of_its_own_which_comes_second_and_goes_with_the_first",
    ),
    (
        "the warning's timer comes with the deadline's",
        "if moment.event in ENDS or moment.at > now:\n            moments",
        "if moment.event in ENDS:\n            moments",
        "test_timers.py::test_the_warning_has_a_timer_of_its_own_which_comes_second_and_goes_with_the_first",
    ),
    (
        "an old timer goes after the new one is saved",
        "    saved = save_state(replace(state, timers=timers))\n    gone = tuple(timer for timer in state.timers if timer not in timers)\n    cancel_timers(host, replace(state, timers=gone))\n    return saved",
        "    cancel_timers(host, state)\n    return save_state(replace(state, timers=timers))",
        "test_timers.py::test_the_new_timer_stands_and_is_saved_before_the_old_one_goes",
    ),
    (
        "where nothing can be armed the deadline is saved",
        "save_state(replace(state, timers=left))\n    raise",
        "raise",
        "test_timers.py::test_where_nothing_works_the_deadline_is_saved_and_it_says_so",
    ),
    (
        "where nothing can be armed a timer of before that acts stays",
        "    left = _timers_left(host, state, moments)",
        "    left = ()",
        "test_timers.py::test_where_nothing_works_a_timer_of_before_that_still_acts_stays",
    ),
    (
        "where nothing can be armed a timer that comes too late is none",
        "timer.deadline <= latest.get(timer.event, 0)",
        "timer.deadline",
        "test_timers.py::test_where_nothing_works_a_timer_of_before_that_still_acts_stays",
    ),
    (
        "root gives nothing to a user whose home it has not",
        "if to.st_uid == now.st_uid or to.st_uid not in _trusted_owners():",
        "if to.st_uid == now.st_uid:",
        "test_own_files.py::test_root_gives_nothing_to_a_user_whose_home_it_has_not",
    ),
    (
        "a teardown at a deadline cuts no guest off from a data disk",
        "    if state.data_disk:\n        return False\n    disk = state.files.disk\n",
        "    disk = state.files.disk\n",
        "test_vm.py::test_a_teardown_cuts_no_guest_off_from_a_disk_that_stays",
    ),
    (
        "a teardown cuts no guest off from a disk that it keeps",
        "_halt(host, state, erases=known and not keep_disk)",
        "_halt(host, state, erases=True)",
        "test_vm.py::test_a_teardown_cuts_no_guest_off_from_a_disk_that_stays",
    ),
    (
        "a resume that finds no room takes its fresh budget back",
        "                _take_back(host, paused)",
        "                pass",
        "test_vm.py::test_what_a_guest_without_room_needs_is_told",
    ),
    (
        "a watcher without a state tries a stop that fails ever later",
        "                self._try_later(end)\n",
        "                pass\n",
        "test_timers.py::test_a_watcher_without_a_state_tries_a_stop_that_fails_ever_later",
    ),
    (
        "a timer that got lost does not stay where none can be armed",
        "latest.get(timer.event, 0)\n        and _is_there(host, state, timer)",
        "latest.get(timer.event, 0)",
        "test_timers.py::test_where_nothing_works_a_timer_of_before_that_still_acts_stays",
    ),
    (
        "the limit of CPU time is lifted for QEMU",
        "            with host.cpu_limit_lifted():\n                host.run(argv, timeout=60, cwd",
        "            if True:\n                host.run(argv, timeout=60, cwd",
        "test_machine.py::test_a_limit_of_cpu_time_is_lifted_for_qemu_or_told",
    ),
    (
        "an expiry that fails is told on the user's terminals",
        "        if state.failed != end.at:\n            host.tell_terminals",
        "        if False:\n            host.tell_terminals",
        "test_telling.py::test_a_reap_that_fails_is_in_the_log_too",
    ),
    (
        "what is paused is used by nobody",
        'if vm_status(host, files) in ("paused", NO_ROOM):\n                return 0, seconds',
        "if False:\n                return 0, seconds",
        "test_idle.py::test_a_vm_is_measured_by_its_monitor_and_its_process",
    ),
    (
        "an empty --max-run is an unset variable",
        '_given("--max-run", text, "duration")',
        'text or "1h"',
        "test_cli.py::test_an_empty_budget_is_not_taken_for_none_that_is_given",
    ),
    (
        "a run tells that its VM was killed under its command",
        "        trouble = _found_off(host, state)",
        "        pass",
        "test_hold.py::test_a_run_tells_that_its_vm_was_killed_under_its_command",
    ),
    (
        "a run that does not begin empties the summary of the one before",
        "    with _summed_up(host, summary) as facts:\n        words = _words(host, command)",
        "    words = _words(host, command)\n    with _summed_up(host, summary) as facts:",
        "test_hold.py::test_a_run_that_has_not_begun_is_summed_up_too",
    ),
    (
        "a warning's timer goes with the other",
        "for timer in state.timers:\n        backend = ",
        "for timer in state.timers[:1]:\n        backend = ",
        "test_timers.py::test_the_warning_has_a_timer_of_its_own_which_comes_second_and_goes_with_"
        "the_first",
    ),
    # --- 11 gcloud flags
    (
        "the cloud deletes and does not only stop",
        "--instance-termination-action=DELETE",
        "--instance-termination-action=STOP",
        "test_gcp.py::test_the_budget_is_given_in_whole_seconds_rounded_up",
    ),
    (
        "what the cloud would refuse is refused",
        "if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS:",
        "if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS + 1:",
        "test_gcp.py::test_what_compute_engine_would_refuse_is_refused",
    ),
    (
        "a data disk that would go is warned of",
        "if isinstance(config, QemuConfig) and config.data_disk:",
        "if False:",
        "test_gcp.py::test_a_warning_is_one_line_on_stderr_and_only_where_it_applies",
    ),
    (
        "an instance that does not run has no deadline",
        'if instance["status"] != "RUNNING":',
        'if instance["status"] == "TERMINATED":',
        "test_gcp.py::test_nothing_counts_while_nothing_runs",
    ),
    (
        "the cloud's own reckoning goes first",
        "known = reckoned or instance",
        "known = instance",
        "test_gcp.py::test_the_moment_that_compute_engine_names_goes_before_a_reckoning",
    ),
    # --- 12 QMP
    (
        "an answer is matched to its question",
        '.get("id") != self.serial:',
        '.get("id") is None:',
        "test_qmp.py::test_a_late_reply_to_an_earlier_command_is_not_taken_for_this_ones",
    ),
    (
        "a refusal of QEMU's is an error",
        'if "error" in message:',
        'if "errors" in message:',
        "test_qmp.py::test_a_bad_answer_is_an_error_that_says_so",
    ),
    (
        "no monitor is waited for without end",
        "self.sock.settimeout(left)",
        "self.sock.settimeout(5.0)",
        "test_qmp.py::test_no_wait_is_longer_than_what_is_left_of_its_time",
    ),
    # --- 13 VM process
    (
        "a VM that can't be seen is not taken for stopped",
        'raise YclusterError(f"{files.name}: its QEMU runs, and can\'t be seen from here", '
        "hint=hint)",
        "vm = None",
        "test_vm.py::test_a_vm_out_of_sight_is_not_taken_for_stopped",
    ),
    (
        "a VM is known by its own pidfile",
        "if os.path.realpath(files.pidfile) in map(os.path.realpath, named):",
        "if named:",
        "test_vm.py::test_the_vm_of_another_cluster_is_not_ours",
    ),
    (
        "whoever has a stale pid is left alone",
        "if os.path.realpath(files.pidfile) in map(os.path.realpath, named):",
        "if True:",
        "test_vm.py::test_the_vm_of_another_cluster_is_not_ours",
    ),
    (
        "a VM that ends while it is looked for is none",
        "if is_qemu_of(pid, files) and not exited(pidfd, 0):",
        "if True:",
        "test_vm.py::test_a_vm_that_ends_while_it_is_looked_for_is_not_found",
    ),
    (
        "a VM whose pidfile is lost is found",
        "(_vm_of(pid, files) for pid in all_pids if",
        "(_vm_of(pid, files) for pid in () if",
        "test_vm.py::test_a_vm_whose_pidfile_is_lost_is_found_by_its_lock",
    ),
    (
        "a pause that QEMU does not answer is made by a signal",
        "send_signal(vm.pidfd, signal.SIGSTOP)",
        "pass",
        "test_vm.py::test_status_follows_the_process",
    ),
    (
        "a resume lets the guest go on",
        'if files.qmp.exists():\n        ask_qemu(host, files, "cont")',
        "pass",
        "test_vm.py::test_a_guest_is_paused_by_its_monitor_and_goes_on",
    ),
    (
        "a pause goes to the guest",
        'ask_qemu(host, files, "stop")',
        'ask_qemu(host, files, "query-status")',
        "test_vm.py::test_a_guest_is_paused_by_its_monitor_and_goes_on",
    ),
    (
        "a paused guest is woken to be shut down",
        'qmp.execute("cont")  #',
        'qmp.execute("query-status")  #',
        "test_vm.py::test_a_paused_guest_is_woken_so_that_it_can_shut_down",
    ),
    (
        "a guest is asked to shut down before anything else is done",
        'qmp.execute("system_powerdown")',
        'qmp.execute("quit")',
        "test_vm.py::test_a_paused_guest_is_woken_so_that_it_can_shut_down",
    ),
    (
        "a VM that outlives all of it is an error",
        'a reboot of the host ends it"\n    raise YclusterError(why, hint=hint)',
        'a reboot of the host ends it"\n    return "SIGKILL"',
        "test_vm.py::test_a_vm_that_nothing_ends_is_an_error",
    ),
    # --- 14 QEMU machine
    (
        "forwards listen where the config says",
        "hostfwd=tcp:{state.bind_address}:",
        "hostfwd=tcp::",
        "test_machine.py::test_forwards_listen_on_loopback_alone",
    ),
    (
        "the guest writes nothing into its seed",
        '"label": "CIDATA", "read-only": True',
        '"label": "CIDATA"',
        "test_machine.py::test_a_seed_is_attached_read_only_where_there_is_one",
    ),
    (
        "the guest has its data disk",
        '*(_disk_argv("data", _qcow2(Path(state.data_disk))) if state.data_disk else []),',
        "",
        "test_machine.py::test_the_disks_are_qcow2_and_the_data_disk_is_the_second",
    ),
    (
        "QEMU is on the disk's own format",
        'return {"driver": "qcow2", "discard": "unmap", "file": file}',
        'return {"driver": "raw", "discard": "unmap", "file": file}',
        "test_machine.py::test_the_disks_are_qcow2_and_the_data_disk_is_the_second",
    ),
    (
        "QEMU's monitor is the user's alone",
        "files.qmp.chmod(0o600)",
        "pass",
        "test_machine.py::test_qemus_monitor_and_console_are_its_users_alone",
    ),
    (
        "the console is the user's alone",
        "        with descriptor(open_own(files.console, os.O_WRONLY | os.O_CREAT)) as console:\n"
        "            if not state.suspended:\n                os.ftruncate(console, 0)\n",
        "",
        "test_machine.py::test_qemus_monitor_and_console_are_its_users_alone",
    ),
    (
        "the guest's hardware outlives an upgrade of QEMU",
        "machine=state.machine or _versioned_machine(host)",
        "machine=_versioned_machine(host)",
        "test_machine.py::test_the_machine_type_is_pinned_to_a_version",
    ),
    (
        "KVM is not believed without its trial",
        "if done.returncode != 33:",
        "if done.returncode > 33:",
        "test_machine.py::test_a_kvm_that_fails_the_trial_is_told_apart",
    ),
    # --- 14 suspend
    (
        "an earlier QEMU is not given a later one's memory",
        "return _numbers(now) >= _numbers(was)",
        "return True",
        "test_suspend.py::test_a_memory_goes_with_a_later_qemu_and_a_cpu_that_lacks_nothing",
    ),
    (
        "a version is numbers, not a text",
        "return _numbers(now) >= _numbers(was)",
        "return now >= was",
        "test_suspend.py::test_a_memory_goes_with_a_later_qemu_and_a_cpu_that_lacks_nothing",
    ),
    (
        "a CPU must have what the guest had",
        "return {*was.split()} <= {*now.split()}",
        "return True",
        "test_suspend.py::test_a_memory_goes_with_a_later_qemu_and_a_cpu_that_lacks_nothing",
    ),
    (
        "what only one of the two knows is no fit",
        "    others += then.keys() ^ now.keys()\n",
        "",
        "test_suspend.py::test_a_memory_goes_with_a_later_qemu_and_a_cpu_that_lacks_nothing",
    ),
    (
        "a pause alone does not prove that nothing was executed",
        '(now in ("paused", NO_ROOM) and reads)',
        'now == "paused"',
        "test_suspend.py::test_only_qemu_proves_that_nothing_was_executed",
    ),
    (
        "nor does -incoming alone",
        '(now in ("paused", NO_ROOM) and reads)',
        "reads",
        "test_suspend.py::test_only_qemu_proves_that_nothing_was_executed",
    ),
    (
        "a guest that ran on makes its memory file worthless",
        "    _remove_memory(files, whole=True)\n    return save_state(replace(state, suspended=None))",
        "    return save_state(replace(state, suspended=None))",
        "test_suspend.py::test_only_qemu_proves_that_nothing_was_executed",
    ),
    (
        "a VM without a monitor is no proof of anything",
        "return False  # the sibling's",
        "return True",
        "test_suspend.py::test_a_vm_without_a_monitor_has_run",
    ),
    (
        "a guest with an error is not suspended",
        'elif now not in ("running", "paused"):',
        "elif False:",
        "test_suspend.py::test_a_guest_whose_memory_could_not_be_loaded_again_is_not_suspended",
    ),
    (
        "a migration is ended before its guest goes on",
        "        cancel_migration(host, qmp)\n        remove(state.files.memory_part)",
        "        remove(state.files.memory_part)",
        "test_suspend.py::test_a_suspend_that_fails_ends_its_migration_before_the_guest_goes_on",
    ),
    (
        "a guest that was paused stays so after a suspend that failed",
        '        if runs_on:\n            qmp.execute("cont", timeout=_FLUSH_TIMEOUT)',
        '        qmp.execute("cont", timeout=_FLUSH_TIMEOUT)',
        "test_suspend.py::test_a_suspend_that_fails_ends_its_migration_before_the_guest_goes_on",
    ),
    (
        "QEMU lets go of a memory that it has written before it writes another",
        'qmp.execute("cont", timeout=_FLUSH_TIMEOUT)\n    elif now',
        "pass\n    elif now",
        "test_suspend.py::test_a_suspend_that_fails_ends_its_migration_before_the_guest_goes_on",
    ),
    (
        "a migration that was left alone is ended",
        "            cancel_migration(host, qmp)\n    except YclusterError as error:",
        "            pass\n    except YclusterError as error:",
        "test_suspend.py::test_a_migration_that_was_left_alone_is_ended",
    ),
    (
        "a VM without a monitor is not woken for a suspend",
        '    if not files.qmp.exists():\n        raise YclusterError(f"{state.name}: its QEMU has no monitor',
        "    _continue(vm)\n    if not files.qmp.exists():\n"
        '        raise YclusterError(f"{state.name}: its QEMU has no monitor',
        "test_suspend.py::test_a_suspend_leaves_a_vm_without_a_monitor_as_it_is",
    ),
    (
        "a guest that sleeps by its own will is not called suspended",
        '    "suspended": "asleep",\n',
        "",
        "test_suspend.py::test_a_guest_that_sleeps_by_its_own_will_is_not_called_suspended",
    ),
    (
        "a program that failed beside QEMU is the cause that is told",
        "failed = process.poll() not in (None, 0)",
        "failed = False",
        "test_suspend.py::test_the_program_that_failed_first_is_the_cause",
    ),
    (
        "an expiry without the lock keeps what is in memory",
        'is_kept = decision.do in ("pause", "suspend")',
        'is_kept = decision.do == "pause"',
        "test_timers.py::test_a_deadline_waits_for_no_lock_that_is_held_without_end",
    ),
    (
        "a teardown removes the stop lock when nobody makes it any more",
        'stop_lock = OwnFile(".stop.lock", "last")',
        'stop_lock = OwnFile(".stop.lock")',
        "test_timers.py::test_a_watcher_that_is_ended_while_it_waits_for_a_stop_leaves_no_file",
    ),
    (
        "a folder in the place of a file is the user's",
        "    if path.is_dir() and not path.is_symlink():\n        return False",
        "    if path.is_dir() and not path.is_symlink():\n        return remove_folder(path)",
        "test_own_files.py::test_a_folder_of_the_users_in_the_place_of_a_file_outlives_a_teardown",
    ),
    # --- 15 guest
    (
        "one login is enough for a guest that goes on",
        '    _say_clock(host, state, None if off == "failed" else off)\n',
        "    set_guest_clock(host, state)\n",
        "test_machine.py::test_one_login_is_enough_for_a_guest_that_goes_on",
    ),
    (
        "a guest boots without its data disk",
        "ext4 defaults,nofail ",
        "ext4 defaults ",
        "test_machine.py::test_a_guest_boots_without_its_data_disk_too",
    ),
    (
        "ssh is strict",
        '"StrictHostKeyChecking": "yes" if',
        '"StrictHostKeyChecking": "no" if',
        "test_machine.py::test_ssh_is_strict_and_knows_nothing_of_the_users_own",
    ),
    (
        "the first host key of a sibling's VM is held to",
        'else "accept-new"',
        'else "no"',
        "test_machine.py::test_the_siblings_guest_is_held_to_the_first_key_it_shows",
    ),
    (
        "ssh goes by the cluster's own known_hosts",
        '"UserKnownHostsFile": _ssh_path(files.known_hosts),',
        "",
        "test_machine.py::test_ssh_is_strict_and_knows_nothing_of_the_users_own test_machine.py::"
        "test_ssh_reads_the_paths_as_they_are",
    ),
    (
        "a Host block has the cluster's own port",
        '"Port": str(port), "User"',
        '"Port": "22", "User"',
        "test_machine.py::test_the_host_block_gives_ssh_what_our_command_gives_it",
    ),
    (
        "a path of ssh's keeps its quotes",
        're.sub(r\'(["\\\\])\', r"\\\\\\1", str(path).replace("%", "%%"))',
        'str(path).replace("%", "%%")',
        "test_machine.py::test_ssh_reads_the_paths_as_they_are",
    ),
    (
        "a command in the guest gets a terminal only where ssh has one on both sides",
        "terminal = bool(words) and os.isatty(0) and os.isatty(1)",
        "terminal = bool(words)",
        "test_machine.py::test_a_command_in_the_guest_gets_a_terminal_where_ssh_has_one",
    ),
    (
        "a command in the guest gets the terminal of ssh",
        "ssh_argv(state, *words, terminal=terminal)",
        "ssh_argv(state, *words)",
        "test_machine.py::test_a_command_in_the_guest_gets_a_terminal_where_ssh_has_one",
    ),
    (
        "nobody logs in with a password",
        '"lock_passwd": True',
        '"lock_passwd": False',
        "test_machine.py::test_user_data_is_a_cloud_config_that_needs_no_quoting",
    ),
    (
        "the credentials of registries are root's alone in the guest",
        '"permissions": "0600",\n        "content": to_json(added.registries)',
        '"permissions": "0644",\n        "content": to_json(added.registries)',
        "test_machine.py::test_user_data_is_a_cloud_config_that_needs_no_quoting",
    ),
    (
        "options of k3s are root's alone in the guest",
        '"permissions": "0600", "content": to_json(added.k3s_config)',
        '"permissions": "0644", "content": to_json(added.k3s_config)',
        "test_guest.py::test_options_of_k3s_are_in_a_file_that_it_reads_at_each_start",
    ),
    (
        "a guest gets no proxy that the config does not ask for",
        'if guest.proxy == "host":',
        "if True:",
        "test_guest.py::test_a_guest_gets_the_proxies_of_the_host_if_the_config_asks",
    ),
    (
        "a proxy on this host has another address in the guest",
        'proxies[name] = re.sub(_LOOPBACK, rf"\\g<1>{HOST_IN_GUEST}", value)',
        "proxies[name] = value",
        "test_guest.py::test_a_guest_gets_the_proxies_of_the_host_if_the_config_asks",
    ),
    (
        "prepare-export removes the proxies",
        "rm -f {PROXIES} {PROXY_UNIT} {PROXY_SUDO}",
        "true",
        "test_guest.py::test_the_proxies_are_set_at_each_boot_and_prepare_export_removes_them",
    ),
    (
        "a guest gets no private key that is beside a certificate",
        "bodies = re.findall(_PEM, text)",
        "return [text]\n    bodies = []",
        "test_guest.py::test_the_guest_trusts_every_certificate_of_a_file_and_gets_no_key",
    ),
    (
        "a certificate that was cut off is refused",
        "return len(der) == start + length",
        "return True",
        "test_guest.py::test_what_is_no_pem_certificate_is_refused_with_its_path",
    ),
    (
        "the second certificate of a file is not passed over where it was cut off",
        "if not bodies or len(bodies) <",
        "if not bodies or 0 >",
        "test_guest.py::test_what_is_no_pem_certificate_is_refused_with_its_path",
    ),
    (
        "user-data that cloud-init would pass over is refused",
        "fault = _cloud_config_fault(text)",
        'fault = ""',
        "test_guest.py::test_user_data_that_cloud_init_would_pass_over_or_that_displaces_our_login"
        "_is_refused",
    ),
    (
        "what stands in a text of a block is nobody's indentation",
        "break  # of a text that begins here, nothing is known",
        "pass",
        "test_guest.py::test_user_data_that_cloud_init_takes_is_taken",
    ),
    (
        "config check looks at a local image whole",
        'size = image_info(host, path)["virtual-size"]',
        "pass",
        "test_appliance.py::test_a_disk_that_was_cut_off_is_refused",
    ),
    (
        "config check compares diskSize with its image",
        "_refuse_small(config.disk_size, size)",
        "pass",
        "test_appliance.py::test_what_a_config_names_on_this_host_is_checked_with_it",
    ),
    (
        "a disk after a power cut is not taken for damaged",
        "features & 1 == 1",
        "features & 1 == 2",
        "test_appliance.py::test_a_disk_after_a_power_cut_is_not_taken_for_damaged",
    ),
    (
        "config check looks at k3s.source",
        "    check_k3s_source(host, config)\n    if config.data_disk:",
        "    if config.data_disk:",
        "test_appliance.py::test_what_a_config_names_on_this_host_is_checked_with_it",
    ),
    (
        "a cluster that is elsewhere is not told as none",
        "    if not namesakes:",
        "    if True:",
        "test_telling.py::test_a_cluster_that_is_elsewhere_by_now_is_not_told_as_none",
    ),
    (
        "the sibling's cacheDir counts before a cluster of the same name",
        'if host.environ.get("Y_CLUSTER_QEMU_CACHE_DIR"):',
        "if False:",
        "test_telling.py::test_a_new_cluster_is_kept_where_the_sibling_is_told_to",
    ),
    (
        "no cluster is ended by the default name of an empty config",
        "if has_no_key(whole):",
        "if False:",
        "test_telling.py::test_no_cluster_is_ended_by_the_default_name_of_an_empty_config",
    ),
    (
        "clusters of one name are told apart by their state files",
        "if names.count(files.name) > 1",
        "if False",
        "test_telling.py::test_clusters_of_one_name_are_told_apart_by_words_that_work",
    ),
    (
        "what is in the seed alone is compared, too",
        "fixed += _seed_differences(state, wanted)",
        "pass",
        "test_reconfigure.py::test_what_is_in_the_seed_alone_is_named_and_not_applied",
    ),
    (
        "the user's own user-data does not take the place of ours",
        'cloud_config["merge_how"] = [*MERGE_HOW]',
        "pass",
        "test_guest.py::test_the_users_own_part_comes_first_as_it_is_and_ours_is_merged_into_it",
    ),
    (
        "keys are new for each cluster",
        'remove(file)\n    remove(file.with_name(file.name + ".pub"))',
        "if file.exists():\n        return",
        "test_machine.py::test_keys_and_seed_are_private_and_new_each_time",
    ),
    (
        "a boot is waited for no longer than its bound",
        "if self.host.monotonic() > self.until:",
        "if self.host.monotonic() > self.until + 10**6:",
        "test_machine.py::test_a_boot_is_waited_for_up_to_its_bound_and_not_once_its_kernel_has_"
        "panicked",
    ),
    (
        "a kernel that panicked is not waited for",
        '(r"end Kernel panic - not syncing", ',
        '(r"no such line", ',
        "test_machine.py::test_a_boot_is_waited_for_up_to_its_bound_and_not_once_its_kernel_has_"
        "panicked",
    ),
    (
        "a resume sets the guest's clock",
        "    if halted:\n        set_guest_clock(host, state)",
        "    if False:\n        set_guest_clock(host, state)",
        "test_vm.py::test_a_resume_sets_the_clock_of_the_guest_once_the_lock_is_free",
    ),
    (
        "a guest's clock that is right enough is left as it is",
        "if [ ${late#-} -gt 2 ]",
        "if [ ${late#-} -gt 0 ]",
        "test_machine.py::test_a_guests_clock_is_set_by_its_rtc",
    ),
    # --- 16 k3s
    (
        "a list without the digests that it must have is refused",
        'return f"it has no digest of {unlisted[0]}" if unlisted else ""',
        'return ""',
        "test_k3s.py::test_a_list_that_is_none_is_told_and_asked_for_again",
    ),
    (
        "a page is not taken for the install script",
        'return "" if file.read(2) == b"#!" else "it is not a script"',
        'return ""',
        "test_k3s.py::test_a_page_in_the_place_of_the_script_is_not_kept",
    ),
    (
        "a list that may be wrong is fetched anew",
        "listing(version, source, anew=True)",
        "pass",
        "test_k3s.py::test_a_list_of_another_release_in_the_cache_is_fetched_anew",
    ),
    (
        "what is in the cache is checked at each use",
        "fault = _k3s_fault(host, path, folder)\n",
        'fault = ""\n',
        "test_k3s.py::test_what_is_wrong_in_the_cache_is_told_and_fetched_anew",
    ),
    (
        "an image in the cache is checked at each use",
        "fault = digest_fault(host, known, config.image_sha256)",
        'fault = ""',
        "test_machine.py::test_an_image_in_the_cache_that_is_not_what_its_name_says_is_fetched_anew",
    ),
    (
        "a full disk proposes no other image",
        '    except OSError as error:\n        why = f"{part}: it',
        '    except KeyError as error:\n        why = f"{part}: it',
        "test_machine.py::test_an_error_of_this_hosts_disk_is_not_the_images",
    ),
    (
        "a guest that gives no answer is not taken for one without k3s",
        'if in_guest(host, state, K3S_START, waiting) != "absent\\n":',
        "try:\n        answer = in_guest(host, state, K3S_START, waiting)\n"
        '    except NotYet:\n        answer = "absent\\n"\n'
        '    if answer != "absent\\n":',
        "test_k3s.py::test_k3s_is_installed_where_the_guest_says_that_it_is_absent_and_nowhere_"
        "else",
    ),
    (
        "k3s is not installed over what is there",
        'if in_guest(host, state, K3S_START, waiting) != "absent\\n":',
        "if not in_guest(host, state, K3S_START, waiting):",
        "test_k3s.py::test_k3s_is_installed_where_the_guest_says_that_it_is_absent_and_nowhere_"
        "else",
    ),
    # --- 17 kubeconfig
    (
        "a context is that of one cluster",
        "if state.context == context and state.files != files:",
        "if state.context == context and state.name == files.name:",
        "test_faults.py::test_a_port_or_a_context_that_is_taken_is_told_before_anything_is_made",
    ),
    (
        "a context of the user's is not replaced",
        "has_our_names = cluster == name and user == name",
        "has_our_names = cluster == user",
        "test_k3s.py::test_a_context_that_points_at_another_cluster_is_refused",
    ),
    (
        "a cluster of the user's that has our name is not replaced",
        "elif file != own and (name in view.clusters or name in view.users):",
        "elif False:",
        "test_k3s.py::test_a_cluster_or_user_of_our_name_that_is_the_users_own_is_not_overwritten",
    ),
    (
        "only what is ours is taken out of the kubeconfig",
        'return bool(entry.get("cluster") == name)',
        "return bool(entry)",
        "test_k3s.py::test_names_that_the_user_has_taken_over_meanwhile_stay",
    ),
    (
        "the user's current context stays",
        "\n    if is_first:",
        "\n    if True:",
        "test_k3s.py::test_our_names_go_in_beside_the_users_and_come_out_again",
    ),
    (
        "whoever has contexts has chosen that none is current",
        "any(view.contexts or view.current_context for view in views)",
        "any(view.current_context for view in views)",
        "test_k3s.py::test_contexts_with_none_of_them_current_keep_ours_from_becoming_it",
    ),
    (
        "a teardown brings no other current context into force",
        'if known and _current_context(others) in ("", _current_context(views.values())):',
        "if known:",
        "test_k3s.py::test_a_teardown_does_not_bring_another_files_current_context_into_force",
    ),
    (
        "a current context stays where the merged files are not known",
        "known = len(others) < len(views)",
        "known = True",
        "test_k3s.py::test_where_the_merged_files_are_not_known_a_current_context_stays_and_is_"
        "reported",
    ),
    (
        "our user is in no context of the user's",
        "if other == context or has_cluster == has_user or (has_cluster and known):",
        "if True:",
        "test_k3s.py::test_names_are_checked_in_all_files_that_kubectl_merges",
    ),
    (
        "names are checked in all files",
        "return {file: _view(host, file) for file in kubeconfig_files(host)}",
        "return {file: _view(host, file) for file in kubeconfig_files(host)[:1]}",
        "test_k3s.py::test_names_are_checked_in_all_files_that_kubectl_merges",
    ),
    (
        "a lock file that can't be made is no held lock",
        'if ".lock: file exists" in error.stderr:',
        'if ".lock" in error.stderr:',
        "test_k3s.py::test_a_lock_file_that_cannot_be_made_is_not_taken_for_one_that_is_held",
    ),
    (
        "a kubeconfig that can't be written is told before",
        "if not os.access(target, os.W_OK):",
        "if False:",
        "test_k3s.py::test_a_kubeconfig_that_cannot_be_used_is_told_before_and_the_cluster_gets_"
        "its_own",
    ),
    (
        "what leads elsewhere is not the sibling's cluster",
        "return leads_here and (entry",
        "return (entry",
        "test_k3s.py::test_what_is_not_provably_of_the_siblings_cluster_stays",
    ),
    (
        "the first backup of the kubeconfig is never overwritten",
        "if file.exists() and not backup.exists():",
        "if file.exists():",
        "test_k3s.py::test_our_names_go_in_beside_the_users_and_come_out_again",
    ),
    (
        "a teardown knows what went into the kubeconfig",
        "state = save_state(replace(state, kubeconfig=str(file)))",
        "state = replace(state, kubeconfig=str(file))",
        "test_k3s.py::test_a_teardown_will_know_of_the_kubeconfig_before_anything_goes_into_it",
    ),
    # --- 18 disk images
    (
        "an image that disks build on can't be written to",
        "part.chmod(0o400)",
        "part.chmod(0o600)",
        "test_machine.py::test_an_image_is_copied_under_its_digest_with_holes_kept",
    ),
    (
        "an image is kept by its own digest",
        "return part.replace(images / digest)",
        "return part.replace(images / (config.image_sha256 or 'image'))",
        "test_machine.py::test_an_image_is_copied_under_its_digest_with_holes_kept",
    ),
    (
        "a disk that builds on another is refused",
        "if set(_files_named(info)) != {str(image)}:",
        "if False:",
        "test_appliance.py::test_what_is_no_whole_disk_is_not_imported",
    ),
    (
        "a disk is never smaller than its image",
        "if parse_size(disk_size) < size:",
        "if False:",
        "test_machine.py::test_a_disk_is_no_smaller_than_its_image_and_finds_it_where_the_"
        "cachedir_is_moved_to",
    ),
    (
        "an imported disk is not made smaller",
        "if wanted > size:",
        "if True:",
        "test_appliance.py::test_an_imported_disk_boots_as_it_is_or_larger_and_outlives_a_"
        "provision_that_fails",
    ),
    (
        "a cacheDir can be moved",
        "base = image.relative_to(state.cache_dir)  #",
        "base = image  #",
        "test_machine.py::test_a_disk_is_no_smaller_than_its_image_and_finds_it_where_the_"
        "cachedir_is_moved_to",
    ),
    (
        "a data disk that is there is never formatted",
        "if path.exists():\n        return\n    make_folder",
        "make_folder",
        "test_appliance.py::test_a_data_disk_that_is_there_is_never_formatted",
    ),
    (
        "of two that make a data disk the first wins",
        "os.link(part, path)",
        "os.replace(part, path)",
        "test_appliance.py::test_a_data_disk_that_another_made_meanwhile_stays",
    ),
    (
        "what Compute Engine imports is whole GiB",
        "return -(-size >> 30) << 30",
        "return size",
        "test_appliance.py::test_a_bundle_is_read_back_checked_and_imported",
    ),
    # --- 19 commands
    (
        "of two provisions at once one gets the context",
        "check_context(host, [other for _, other in readable(host)], config, files)\n        try:",
        "try:",
        "test_faults.py::test_of_two_provisions_at_once_one_alone_gets_the_context",
    ),
    (
        "of two clusters none is guessed",
        "if len(found) == 1:\n        return",
        "if found:\n        return",
        "test_cli.py::test_when_it_is_not_clear_the_clusters_are_listed",
    ),
    (
        "a bad sidecar hides no other",
        "                found.append((files, None))\n    return found",
        "            break\n    return found",
        "test_cli.py::test_a_corrupt_sidecar_does_not_hide_other_clusters",
    ),
    (
        "a verb goes by what is saved when it gets the lock",
        "load_state(files)  # where there is none, this raises before a lock file is made\n"
        "    with cluster_lock(host, files, patience=patience):\n"
        "        saved = _newest(host, load_state(files))  # again: it may have been changed while we waited",
        "saved = load_state(files)\n    with cluster_lock(host, files, patience=patience):",
        "test_faults.py::test_a_verb_goes_by_what_was_written_while_it_waited_for_the_lock",
    ),
    (
        "a verb makes no lock where there is no cluster",
        "load_state(files)  # where there is none, this raises before a lock file is made",
        "pass",
        "test_cli.py::test_every_verb_says_that_the_config_has_no_cluster_yet test_cli.py::test_"
        "every_verb_says_that_there_is_no_cluster",
    ),
    (
        "a verb goes by the clock of now",
        "state = adjusted(saved, host.clock())",
        "state = saved",
        "test_histories.py::test_histories_that_must_be_among_them",
    ),
    (
        "what is shown is by the clock of now",
        "return adjusted(load_state(files), host.clock())",
        "return load_state(files)",
        "test_histories.py::test_histories_that_must_be_among_them",
    ),
    (
        "a cluster is known whatever kills its provision",
        "            return save_state(state)\n        except BaseException:\n            remove",
        "            return state\n        except BaseException:\n            remove",
        "test_faults.py::test_a_provision_that_is_killed_while_it_makes_the_disk_is_known",
    ),
    (
        "a list sees the clusters of other places",
        "remember_cache_dir(host, files.cache_dir)\n        state = _claim",
        "state = _claim",
        "test_faults.py::test_a_provision_that_is_killed_while_it_makes_the_disk_is_known",
    ),
    (
        "a provision that failed leaves nothing",
        "_erase(host, state, keep_disk=bool(state.imported))",
        "pass",
        "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_"
        "guard",
    ),
    (
        "a provision looks again under the lock",
        "if _origin_of_disk(host, files) != imported:",
        "if False:",
        "test_appliance.py::test_a_disk_that_is_imported_while_provision_fetches_its_image_is_not_"
        "touched",
    ),
    (
        "a provision that failed leaves an imported disk",
        "_erase(host, state, keep_disk=bool(state.imported))",
        "_erase(host, state)",
        "test_appliance.py::test_an_imported_disk_boots_as_it_is_or_larger_and_outlives_a_"
        "provision_that_fails",
    ),
    (
        "a provision that failed after its VM ran leaves the disk under it",
        "if not running(host, state.files):\n            _erase",
        "if True:\n            _erase",
        "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_"
        "guard",
    ),
    (
        "ports are looked at before anything is made",
        "_check_ports(host, state)\n    if state.data_disk:",
        "if state.data_disk:",
        "test_faults.py::test_a_port_or_a_context_that_is_taken_is_told_before_anything_is_made",
    ),
    (
        "a sibling's disk is not half made",
        "bool(self.image) and self.started_at is None",
        "self.started_at is None",
        "test_cli.py::test_provision_never_takes_over_what_is_there",
    ),
    (
        "what has booted is not half made",
        "bool(self.image) and self.started_at is None",
        "bool(self.image) and self.started_at is not None",
        "test_cli.py::test_provision_never_takes_over_what_is_there",
    ),
    (
        "a disk that no cluster claims is not overwritten",
        "for path in files.unclaimed():\n        what",
        "for path in []:\n        what",
        "test_cli.py::test_provision_never_takes_over_what_is_there",
    ),
    (
        "a teardown that is cut off is known: the state file goes last",
        "first = files.disposable()\n    if",
        "remove(files.sidecar)\n    first = files.disposable()\n    if",
        "test_faults.py::test_what_an_expiry_needs_goes_last_in_a_teardown",
    ),
    (
        "a teardown that is cut off can be finished: the state file outlives the program",
        'files.going("last") if files.remove(path)]',
        'files.going("last")[::-1] if files.remove(path)]',
        "test_faults.py::test_what_an_expiry_needs_goes_last_in_a_teardown",
    ),
    (
        "a teardown takes the timers away",
        "cancel_timers(host, state)\n    return removed",
        "return removed",
        "test_faults.py::test_what_an_expiry_needs_goes_last_in_a_teardown",
    ),
    (
        "a teardown without a state file leaves the disk",
        "keep_disk=keep_disk or not known)",
        "keep_disk=keep_disk)",
        "test_faults.py::test_a_teardown_by_the_copy_of_a_state_alone_leaves_the_disk",
    ),
    (
        "the timer stands before the guest runs",
        "state = arm_timers(host, state)\n"
        "        # Only now may the guest run.\n"
        "        state = run_guest(host, state)",
        "state = run_guest(host, state)\n        state = arm_timers(host, state)",
        "test_faults.py::test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_"
        "guard",
    ),
    (
        "a guest that did not come to run leaves no deadline",
        "swap_timers(host, stopped(_not_started(before, saved)), ())\n        raise",
        "pass\n        raise",
        "test_histories.py::test_histories_that_must_be_among_them",
    ),
    (
        "a KVM that fails at the launch is checked again",
        "            forget_kvm(host)\n",
        "",
        "test_machine.py::test_a_kvm_that_fails_at_the_launch_is_given_up_and_asked_again_the_next_time",
    ),
    (
        "a KVM that failed its check is asked again",
        "if isinstance(error, SlowKvm):",
        "if True:",
        "test_machine.py::test_a_kvm_that_failed_its_trial_is_asked_again_at_the_next_start",
    ),
    (
        "a QEMU that came up and can't be used is killed",
        "ran_with=accel))\n    except BaseException:\n        _kill(host, state.files)\n        raise",
        "ran_with=accel))\n    except BaseException:\n        raise",
        "test_vm.py::test_a_vm_that_does_not_tell_its_ports_is_not_left_running",
    ),
    (
        "an extension arms what is disarmed no more",
        "    if state.disarmed:\n        return state if host.holder is None else save_state(_with_own_hold(host, state))\n",
        "",
        "test_faults.py::test_what_is_disarmed_stays_so_when_extended",
    ),
    (
        "a running cluster that has a budget gets a deadline",
        "if state.expires_at is None and budget(state.max_run) is not None:\n        return save_state",
        "if False:\n        return save_state",
        "test_vm.py::test_resume_wakes_a_guest_that_stopped_by_itself_and_gives_it_a_deadline",
    ),
    (
        "start refuses a cluster whose data disk is gone",
        '    if state.data_disk:\n        yield "data disk"',
        '    if False:\n        yield "data disk"',
        "test_appliance.py::test_start_without_its_data_disk_is_refused",
    ),
    (
        "a boot disk that is gone is told by list",
        "    if not state.is_half_made:\n        yield ",
        "    if False:\n        yield ",
        "test_appliance.py::test_a_disk_that_is_gone_or_none_is_told_by_list_and_doctor",
    ),
    (
        "a disk that QEMU has marked as corrupt is told before anything is dropped",
        "if disk.is_file() and _is_marked_corrupt(disk):",
        "if False:",
        "test_appliance.py::test_a_disk_that_is_marked_as_corrupt_is_told_by_doctor_and_start",
    ),
    (
        "a disk that is no qcow2 is told by doctor",
        "if disk.is_file() and not is_qcow2(disk):",
        "if False:",
        "test_appliance.py::test_a_disk_that_is_gone_or_none_is_told_by_list_and_doctor",
    ),
    (
        "a vmdk that was cut off is refused",
        ' or "Check failed" in done.stderr',
        "",
        "test_appliance.py::test_a_disk_in_another_format_that_was_cut_off_is_refused",
    ),
    (
        "a raw disk that was cut off is refused",
        "(last + 1) * 512 > image.stat().st_size",
        "False",
        "test_appliance.py::test_a_disk_in_another_format_that_was_cut_off_is_refused",
    ),
    (
        "an archive that was cut off is told as one",
        'if re.search(r"Unexpected EOF|',
        'if re.search(r"NEVER|',
        "test_appliance.py::test_an_archive_that_was_cut_off_is_refused",
    ),
    (
        "the limit of a cgroup counts",
        "free.append(int(limit)",
        "len([]) and free.append(int(limit)",
        "test_machine.py::test_the_limit_of_a_cgroup_counts_as_the_hosts",
    ),
    (
        "an invisible character in a quoted text is warned of",
        "if char and char[0] in text:",
        "if False:",
        "test_config.py::test_an_invisible_character_in_a_free_text_is_warned_about",
    ),
    (
        "a stop clears the deadline",
        "swap_timers(host, stopped(state), ())\n    if how:",
        "swap_timers(host, state, ())\n    if how:",
        "test_cli.py::test_stop_of_a_stopped_cluster_is_done_already_and_clears_its_deadline",
    ),
    (
        "a guest that has no room for what it writes is not cut off",
        "if is_stuck and not may_cut_off():",
        "if False:",
        "test_vm.py::test_a_guest_without_room_is_not_cut_off_before_it_has_written",
    ),
    (
        "a guest that gets room while it is stopped goes on to its end",
        'qmp.execute("cont")  # one that is, or',
        'until - host.monotonic() > 99 and qmp.execute("cont")  # one that is, or',
        "test_vm.py::test_a_guest_that_gets_room_while_it_is_stopped_shuts_down",
    ),
    (
        "a guest without room is suspended",
        'if now in ("postmigrate", NO_ROOM):',
        'if now in ("postmigrate",):',
        "test_suspend.py::test_a_suspend_that_fails_ends_its_migration_before_the_guest_goes_on",
    ),
    (
        "a memory of a guest without room can be loaded",
        'if now not in ("paused", NO_ROOM):\n        raise YclusterError(f"{name}: QEMU is',
        'if now != "paused":\n        raise YclusterError(f"{name}: QEMU is',
        "test_suspend.py::test_the_memory_of_a_guest_without_room_is_loaded",
    ),
    (
        "a start says that a guest stands still for want of room",
        'if now in ("paused", NO_ROOM):\n            raise wrong_state',
        'if now == "paused":\n            raise wrong_state',
        "test_vm.py::test_what_a_guest_without_room_needs_is_told",
    ),
    (
        "a stop goes on until nothing of the cluster runs",
        "how = stop_vm(host, files, vm, poweroff, may_cut_off)\n",
        "how = stop_vm(host, files, vm, poweroff, may_cut_off)\n            break\n",
        "test_vm.py::test_stop_goes_on_until_no_process_of_the_cluster_is_left",
    ),
    (
        "a guest that is resumed late is not reaped at once",
        "return state.expires_at is not None and state.expires_at <= now and not state.disarmed",
        "return False",
        "test_faults.py::test_resume_gives_a_fresh_budget_where_the_old_one_is_used_up_and_only_"
        "there",
    ),
    (
        "a guest that is resumed in time keeps its budget",
        "state.expires_at <= now and not state.disarmed",
        "not state.disarmed",
        "test_faults.py::test_resume_gives_a_fresh_budget_where_the_old_one_is_used_up_and_only_"
        "there",
    ),
    (
        "a guest is woken after its timer stands",
        "            state = _see_to_timers(host, state)  # before the guest runs\n",
        "            _wake(host, state, vm)\n            state = _see_to_timers(host, state)\n",
        "test_vm.py::test_a_guest_is_not_woken_before_a_timer_guards_it",
    ),
    (
        "a paused guest that does not go on is told",
        '    if now != "running":\n        why = f"{state.name} could not',
        '    if False:\n        why = f"{state.name} could not',
        "test_vm.py::test_resume_fails_where_the_guest_does_not_go_on",
    ),
    (
        "an early look reaps nothing and arms",
        "state = arm_timers(host, state, renew=fired and (is_near or not is_one_of_many))",
        "pass",
        "test_telling.py::test_a_warning_tells_terminals_the_log_and_a_command_and_only_once",
    ),
    (
        "the timer that fired early is not counted on",
        "renew=fired and (is_near or not is_one_of_many))",
        "renew=False)",
        "test_faults.py::test_a_timer_that_came_early_is_armed_anew",
    ),
    (
        "what onWarn leaves in the background is not waited for",
        """exec sh -c "$1" >/proc/self/fd/{fd} 2>&1'""",
        """exec sh -c "$1"'""",
        "test_telling.py::test_what_a_command_leaves_in_the_background_is_not_waited_for",
    ),
    (
        "what onWarn has written is shown where it fails",
        "done.stderr or written)",
        "done.stderr)",
        "test_telling.py::test_a_command_that_fails_or_hangs_is_said_and_harms_nothing",
    ),
    (
        "a warning is given once",
        "return replace(state, warned=state.expires_at)\n\n\ndef _warn(",
        "return state\n\n\ndef _warn(",
        "test_telling.py::test_a_warning_tells_terminals_the_log_and_a_command_and_only_once",
    ),
    (
        "whoever is warned can extend at once",
        'if decision.do == "warn":  # without the lock: whoever is warned may want to extend\n'
        "        _warn",
        '    if decision.do == "warn":\n            _warn',
        "test_faults.py::test_whoever_is_warned_can_extend_from_there",
    ),
    (
        "a command that warns has its bound",
        "timeout = max(1.0, min(NOTICE_TIMEOUT, left))",
        "timeout = max(1.0, left)",
        "test_telling.py::test_a_command_that_fails_or_hangs_is_said_and_harms_nothing test_"
        "telling.py::test_a_command_has_no_more_time_than_is_left",
    ),
    (
        "a second try stands before the first",
        "state = replace(tried_again(state, end, again), ending=ending)",
        "pass",
        "test_faults.py::test_a_second_try_stands_before_the_first_and_only_a_success_takes_it_away",
    ),
    (
        "a second try is armed, and not only written down",
        "        state = replace(tried_again(state, end, again), ending=ending)\n        state = arm_timers(host, state, renew=True)",
        "        state = save_state(replace(tried_again(state, end, again), ending=ending))",
        "test_faults.py::test_a_second_try_stands_before_the_first_and_only_a_success_takes_it_away",
    ),
    (
        "a reap goes on where no second try can be armed",
        "except Exception as error:  # whatever it is: the VM is to end all the same\n"
        '        host.output.warn(f"{state.name}: no second try',
        "except ZeroDivisionError as error:\n"
        '        host.output.warn(f"{state.name}: no second try',
        "test_faults.py::test_where_no_second_try_can_be_armed_the_first_is_made_all_the_same",
    ),
    (
        "what has stopped is not torn down",
        "if not how and (not ending or state.suspended is not None):",
        "if False:",
        "test_vm.py::test_an_expiry_tears_nothing_down_that_it_finds_stopped",
    ),
    (
        "what an expiry did is written down",
        "swap_timers(host, replace(stopped(state), reaped=reaped), ())",
        "swap_timers(host, stopped(state), ())",
        "test_cli.py::test_the_next_command_reaps_what_is_overdue_elsewhere",
    ),
    (
        "an expiry that failed is an error",
        'raise _failed(host, state, action, by, "failed", again, error) from error',
        "return",
        "test_telling.py::test_a_reap_that_fails_is_in_the_log_too",
    ),
    (
        "the next command spares the cluster that is meant",
        "if files == spare:",
        "if False:",
        "test_faults.py::test_a_verb_spares_its_own_cluster_and_reaps_the_one_of_the_same_name_"
        "elsewhere",
    ),
    (
        "a start reaps not the cluster that it starts",
        "_check_host(host)\n    hand_over(host, spare=files)",
        '_check_host(host)\n    sweep(host, by="next command")',
        "test_faults.py::test_no_verb_but_a_reap_tears_its_own_cluster_down_because_it_is_overdue",
    ),
    (
        "a stop reaps not the cluster that it stops",
        'read."""\n    hand_over(host, spare=files)',
        'read."""\n    sweep(host, by="next command")',
        "test_faults.py::test_no_verb_but_a_reap_tears_its_own_cluster_down_because_it_is_overdue",
    ),
    (
        "a provision has what is overdue elsewhere reaped",
        "hand_over(host, spare=files)\n    others",
        "others",
        "test_faults.py::test_who_makes_a_cluster_has_others_reaped_too",
    ),
    (
        "a resume reaps not the cluster that it wakes",
        "hand_over(host, spare=files)\n    with opened(host, files) as state:\n"
        "        state = _settled(host, state)\n        halted",
        'sweep(host, by="next command")\n    with opened(host, files) as state:\n'
        "        state = _settled(host, state)\n        halted",
        "test_faults.py::test_no_verb_but_a_reap_tears_its_own_cluster_down_because_it_is_overdue",
    ),
    (
        "a sweep outlives any failure",
        "busy.append(files)\n        except Exception as error:",
        "busy.append(files)\n        except YclusterError as error:",
        "test_faults.py::test_whatever_is_wrong_with_one_cluster_keeps_no_other_from_being_reaped",
    ),
    (
        "a sweep waits for no cluster that is busy",
        "reap(host, files, by=by, patience=0.5)\n            except NoLock",
        "reap(host, files, by=by)\n            except NoLock",
        "test_faults.py::test_watching_all_waits_for_no_cluster_that_is_busy",
    ),
    (
        "the next command outlives any failure of another cluster",
        "_reap_apart(host, state)\n        except Exception as error:",
        "_reap_apart(host, state)\n        except YclusterError as error:",
        "test_faults.py::test_whatever_is_wrong_with_one_cluster_keeps_no_other_from_being_reaped",
    ),
    (
        "the next command starts nothing for a cluster that is busy",
        "        except Busy:\n            return\n        except (YclusterError, OSError):  # no lock",
        "        except (YclusterError, OSError):  # no lock",
        "test_faults.py::test_the_next_command_leaves_a_busy_cluster_to_whoever_works_on_it",
    ),
    (
        "a reap that is handed over needs no log",
        "            fd = os.open(os.devnull, os.O_WRONLY)\n        with descriptor(fd) as to",
        "            raise\n        with descriptor(fd) as to",
        "test_faults.py::test_a_reap_that_is_handed_over_needs_no_log_and_no_new_copy",
    ),
    (
        "a timer waits for the lock without end",
        "wait=wait / 10**9, patience=NEVER)",
        "wait=wait / 10**9, patience=LOCK_TIMEOUT)",
        "test_timers.py::test_a_timer_waits_for_as_long_as_the_cluster_is_worked_on_and_people_"
        "are_told",
    ),
    (
        "a reap that comes early waits no longer than it is told",
        "host.sleep(ahead if ahead <= wait else 0)",
        "host.sleep(ahead)",
        "test_timers.py::test_a_reap_waits_for_a_deadline_that_is_near_and_for_no_other",
    ),
    (
        "the next command arms what has lost its timer",
        "return not wanted <= armed or not is_armed(host, state)",
        "return False",
        "test_faults.py::test_the_next_command_arms_what_has_lost_its_timer_and_reaps_what_has_outlived_it",
    ),
    (
        "the next command reaps what is overdue",
        "if moments[0].at <= host.now():\n        return True",
        "if False:\n        return True",
        "test_faults.py::test_the_next_command_arms_what_has_lost_its_timer_and_reaps_what_has_outlived_it",
    ),
    (
        "a teardown never guesses",
        "if which.unnamed_for:",
        "if False:",
        "test_cli.py::test_teardown_never_guesses_and_lists_the_commands_to_paste",
    ),
    (
        "the choice of a timer is kept",
        "return state if chosen is None else replace(state, timer_choice=chosen)",
        "return state",
        "test_timers.py::test_a_timer_that_was_chosen_is_armed_again_by_whoever_does_not_choose",
    ),
    (
        "an edit ends no VM at once",
        "    if expires_at <= clock.now:\n        expires_at = _end_of(",
        "    if False:\n        expires_at = _end_of(",
        "test_reconfigure.py::test_the_deadline_of_a_running_vm_follows_its_budget",
    ),
    (
        "a running guest keeps its machine",
        "    if runs:\n        at_start += network",
        "    if False:\n        at_start += network",
        "test_reconfigure.py::test_the_machine_is_changed_at_a_start_and_not_below_a_running_guest",
    ),
    (
        "an extended deadline stays where the budget has not changed",
        'if "lifetime" in changed:',
        "if True:",
        "test_reconfigure.py::test_a_config_that_was_not_edited_changes_nothing",
    ),
    (
        "an extension is armed",
        "                state = _see_to_timers(host, state)\n            finally:",
        "                pass\n            finally:",
        "test_telling.py::test_every_step_of_a_life_is_in_the_log_of_events",
    ),
    (
        "an extension that no timer can follow is in the log",
        "finally:  # it is moved, whatever",
        "except ValueError:  # it is moved, whatever",
        "test_faults.py::test_an_extension_that_no_timer_can_follow_is_saved_told_and_in_the_log",
    ),
    (
        "a program that has grown can be a timer's",
        "read_own(files.program, PROGRAM_SIZE)",
        "read_own(files.program)",
        "test_timers.py::test_a_program_that_has_grown_is_as_good_a_timer",
    ),
    (
        "a dry run changes nothing",
        "if not dry_run:",
        "if True:",
        "test_telling.py::test_a_dry_run_says_what_would_be_and_changes_nothing",
    ),
    (
        "a timer that can't run does not count as armed",
        '        return program_trouble(host, state)\n    return ""',
        '        return ""\n    return ""',
        "test_timers.py::test_a_timer_whose_last_run_failed_is_told_and_replaced "
        "test_timers.py::test_a_timer_that_finds_no_python_says_so_and_is_replaced",
    ),
    (
        "a timer that is replaced is not held to what became of the one before",
        "remove(state.files.timer_failed)",
        "pass",
        "test_timers.py::test_a_timer_whose_last_run_failed_is_told_and_replaced",
    ),
    (
        "a watcher stands beside whichever timer is armed",
        "    _stand_watch(host, state)\n",
        "",
        "test_timers.py::test_arming_any_timer_sees_that_a_watcher_stands_beside",
    ),
    (
        "a watcher knows the deadline that was written last",
        "self.known = self._last_written()",
        "pass",
        "test_timers.py::test_a_watcher_knows_the_deadline_that_was_written_last",
    ),
    (
        "a watcher takes the state of this run alone",
        "if state.started_at == self.known.started_at:",
        "if False:",
        "test_timers.py::test_a_watcher_knows_the_deadline_that_was_written_last",
    ),
    (
        "a watcher's reap that fails comes again ever later",
        "return max(wake, again) if end == failed else wake",
        "return wake",
        "test_timers.py::test_a_watcher_whose_reap_fails_tries_again_ever_later",
    ),
    (
        "a new deadline does not wait for that of before",
        "return max(wake, again) if end == failed else wake",
        "return max(wake, again)",
        "test_timers.py::test_a_watcher_whose_reap_fails_tries_again_ever_later",
    ),
    (
        "a systemd timer that is refused is taken away",
        "            self._stop(host, unit)\n            raise",
        "            raise",
        "test_timers.py::test_a_systemd_timer_without_a_time_is_not_armed",
    ),
    (
        "a run keeps the deadline of what ran before",
        "    if run_budget and ran and (",
        "    if run_budget and ran and before == 'paused' and (",
        "test_hold.py::test_a_run_never_shortens_the_life_of_a_cluster_that_ran_before",
    ),
    (
        "an expiry under a run's command is told",
        "if state.reaped is not None and brought == _run_of(state):",
        "if False:",
        "test_hold.py::test_an_expiry_under_the_command_of_a_run_is_told_at_its_end",
    ),
    (
        "what its expiry has paused is not held",
        'if now == "paused" and state.reaped:',
        "if False:",
        "test_hold.py::test_what_its_expiry_has_paused_is_not_held_and_its_way_out_is_a_resume",
    ),
    (
        "a start that its budget ends says so",
        "        if reaped is None:\n            raise\n        why = _expired",
        "        raise\n        why = _expired",
        "test_hold.py::test_a_start_that_its_own_budget_ends_says_so",
    ),
    (
        "a watcher leaves the deadline to its timer for a while",
        "wake = end + WATCH_GRACE",
        "pass",
        "test_timers.py::test_a_watcher_stands_by_and_leaves_the_deadline_to_the_timer_for_a_while",
    ),
    (
        "a deadline that nobody else can read is left to nobody",
        "        wake = self._after_failure(end, end)\n",
        "        wake = self._after_failure(end, end + WATCH_GRACE)\n",
        "test_timers.py::test_no_deadline_is_left_to_a_timer_that_cannot_read_it_either",
    ),
    (
        "a job of at's counts only with our text",
        'return f"--state {path} " in self.job_text(host, job)',
        "return bool(self.job_text(host, job))",
        "test_timers.py::test_a_number_that_at_has_given_to_another_is_neither_believed_nor_removed",
    ),
    (
        "a stopped watcher is no timer",
        "return holder is None or holder == os.getpid() or _is_fit(holder, files)",
        "return True",
        "test_timers.py::test_a_watcher_that_is_no_good_is_replaced_by_the_next_verb",
    ),
    (
        "a watcher of the place that the files were moved from is none",
        "and watched(pid) == str(files.sidecar)",
        "",
        "test_timers.py::test_a_watcher_of_the_place_that_the_files_were_moved_from_is_replaced",
    ),
    (
        "whoever holds the watch lock is not ended unless it is a watcher",
        "if holder is not None and not watched(holder):",
        "if False:",
        "test_timers.py::test_a_lock_that_is_held_by_no_watcher_is_no_watch",
    ),
    (
        "whoever looks at a lock does not hold it",
        '["FLOCK", "ADVISORY", "WRITE"]',
        '["FLOCK", "ADVISORY", words[3]]',
        "test_timers.py::test_whoever_looks_at_a_lock_does_not_hold_it",
    ),
    (
        "a watcher is asked only where it would not end by that",
        "and catches(pid, ASK_TO_STOP):",
        "and True:",
        "test_vm.py::test_a_vm_whose_folder_is_gone_is_shut_down_by_its_watcher",
    ),
    (
        "a watcher whose state can be read stops nothing when asked",
        "        if not self.readable:\n            return self._act_without_files",
        "        if asked or not self.readable:\n            return self._act_without_files",
        "test_timers.py::test_a_watcher_that_is_asked_stops_a_vm_whose_files_are_lost_before_its_deadline",
    ),
    (
        "the monitor of a moved VM is where its lock is",
        "            now = where_now(vm.pid, files)\n",
        "            now = files\n",
        "test_vm.py::test_a_vm_without_a_state_whose_folder_was_moved_is_shut_down_by_its_monitor",
    ),
    (
        "the terminals are told of a VM whose files are lost",
        'host.tell_terminals(f"ycluster: {text}")',
        "pass",
        "test_timers.py::test_a_watcher_ends_a_vm_whose_files_are_lost_at_the_deadline_it_knows",
    ),
    (
        "what is to be run is looked for before a cluster boots",
        "    host.check_command(words[0])\n",
        "",
        "test_hold.py::test_what_is_no_command_boots_nothing",
    ),
    (
        "a resume after its expiry counts a budget of its own from now",
        "is_over = state.reaped is not None or _used_up(changed, host.now())",
        "is_over = _used_up(changed, host.now())",
        "test_timers.py::test_what_its_expiry_has_paused_goes_on_with_a_fresh_budget",
    ),
    (
        "an edited budget of what its expiry has paused counts from now",
        'if "lifetime" in changed and state.reaped is not None:  # what',
        "if False:  # what",
        "test_reconfigure.py::test_what_its_expiry_has_paused_gets_the_whole_of_an_edited_budget",
    ),
    (
        "a budget of one run is over with it",
        "        if before.reaped is not None:\n            before = after_expiry(before)\n",
        "",
        "test_timers.py::test_what_its_expiry_has_paused_is_armed_by_the_budget_of_its_config",
    ),
    (
        "a failed resume keeps what was disarmed",
        "return swap_timers(host, state, state.timers if state.disarmed else ())",
        "return swap_timers(host, state, ())",
        "test_vm.py::test_a_failed_resume_leaves_disarmed_what_was",
    ),
    (
        "a resume that may have worked keeps its deadline",
        "if halted and (now in _MAY_RUN or vm_status(host, state.files) not in _MAY_RUN):",
        "if halted:",
        "test_vm.py::test_a_resume_whose_monitor_does_not_answer_since_keeps_what_ends_it",
    ),
    (
        "a guest that had no room and does not answer has none",
        'in (NO_ROOM, "busy", "unresponsive")',
        "in (NO_ROOM,)",
        "test_vm.py::test_a_guest_that_had_no_room_and_answers_no_more_is_not_cut_off",
    ),
    (
        "the look before anything is dropped waits for an answer",
        "vm_status(host, files, patience=ANSWER_TIMEOUT) == NO_ROOM",
        "vm_status(host, files) == NO_ROOM",
        "test_vm.py::test_before_a_guest_is_cut_off_its_monitor_has_long_to_say_that_it_has_no_room",
    ),
    (
        "one's own work is not another's",
        "is_ours = files.lock in host.locked",
        "is_ours = False",
        "test_vm.py::test_a_cluster_whose_vm_does_not_answer_is_not_busy_with_the_verb_that_asks",
    ),
    (
        "a pause waits for a stop",
        "        if not _freeze(host, state):\n            raise wrong_state",
        "        with find_vm(host, files) as vm:\n            how = vm and pause_vm(host, files, vm)\n        if not how:\n            raise wrong_state",
        "test_vm.py::test_a_pause_waits_for_a_stop_that_is_under_way_without_the_lock",
    ),
    (
        "ssh names a guest without room",
        '    if now in (*OFF, "paused", NO_ROOM):\n        raise wrong_state(state, now)\n    host.need',
        '    if now in (*OFF, "paused"):\n        raise wrong_state(state, now)\n    host.need',
        "test_vm.py::test_what_a_guest_without_room_needs_is_told",
    ),
    (
        "what was loaded and has not run keeps its memory file",
        '(now in ("paused", NO_ROOM) and reads)',
        '(now == "paused" and reads)',
        "test_suspend.py::test_only_qemu_proves_that_nothing_was_executed",
    ),
    (
        "a run without a budget tells that its VM is off",
        "    if not state.has_limit and not state.suspended:  # then",
        "    if False:  # then",
        "test_hold.py::test_a_run_without_a_budget_tells_that_its_vm_was_off_under_its_command",
    ),
    (
        "a folder beside is no command",
        "is_there = os.sep in program and os.path.exists(program)",
        "is_there = os.path.exists(program)",
        "test_hold.py::test_what_is_no_command_boots_nothing",
    ),
    (
        "the user's command has its CPU limit",
        "            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))\n",
        "            pass\n",
        "test_host.py::test_what_outlives_a_command_is_not_killed_by_the_limit_of_its_shell",
    ),
    (
        "a first failure after a hold is told",
        "        if state.failed != end.at:",
        "        if state.retry_at is None:",
        "test_telling.py::test_a_reap_that_fails_is_in_the_log_too",
    ),
    (
        "a failure is told once",
        "                save_state(replace(_newest(host, load_state(state.files)), failed=end.at))\n",
        "                pass\n",
        "test_telling.py::test_a_reap_that_fails_is_in_the_log_too",
    ),
    (
        "nothing is written into what is torn down",
        "        if os.path.lexists(state.files.sidecar):\n            _spawn_reap(host, state)",
        "        _spawn_reap(host, state)",
        "test_faults.py::test_nothing_is_left_in_the_folder_of_a_cluster_that_is_torn_down_meanwhile",
    ),
    (
        "a watcher stops what it can't log in to",
        "        poweroff = partial(self._poweroff_without_files, state)\n",
        "        poweroff = partial(self._poweroff_without_files, state)\n        poweroff()\n",
        "test_timers.py::test_a_watcher_needs_no_room_to_stop_a_vm_whose_files_are_lost",
    ),
    (
        "a hold of a lost VM is looked at later",
        "        after = replace(after, retry_at=decision.again)\n",
        "        pass\n",
        "test_timers.py::test_a_hold_of_a_vm_whose_files_are_lost_is_looked_at_again_later_and_has_its_grace",
    ),
    (
        "a lost VM has its grace after a hold",
        "decision = decide(after, host.clock(), was_held=was_held)",
        "decision = decide(after, host.clock())",
        "test_timers.py::test_a_hold_of_a_vm_whose_files_are_lost_is_looked_at_again_later_and_has_its_grace",
    ),
    (
        "watch tells the next deadline of clusters that share a name",
        "    ends = []\n    for state in states:\n        deadline = deadline_of(state)",
        "    ends = []\n    for state in {state.name: state for state in states}.values():\n        deadline = deadline_of(state)",
        "test_telling.py::test_watch_all_says_what_it_watches_whenever_that_changes",
    ),
    (
        "what is torn down meanwhile is not unreadable",
        "            if is_gone(files.sidecar):  # it was torn down meanwhile\n                continue\n",
        "",
        "test_prune.py::test_a_cluster_that_is_torn_down_meanwhile_is_none_that_cannot_be_read",
    ),
    (
        "a stale pidfile is no failure",
        "        with contextlib.suppress(OSError):  # see above\n            remove(path)",
        "        remove(path)",
        "test_suspend.py::test_on_a_read_only_disk_what_stood_still_is_ended_all_the_same",
    ),
    (
        "a full log tells of a teardown, too",
        "for path in (log, _full_log(log)):",
        "for path in (log,):",
        "test_telling.py::test_a_teardown_is_told_of_when_the_log_has_just_become_full",
    ),
    (
        "where a budget of one run is the only one, it counts again",
        "return by_config if by_config.has_limit else state",
        "return by_config",
        "test_timers.py::test_what_its_expiry_has_paused_is_armed_by_the_budget_of_its_config",
    ),
    (
        "what was paused unused, and armed, is no expired run",
        "watched_from(replace(state, reaped=None), host.clock())",
        "watched_from(state, host.clock())",
        "test_timers.py::test_what_was_paused_unused_is_disarmed_for_good",
    ),
    (
        "a watcher of lost files warns of nothing else",
        'if decision.do == "warn" and decision.again is not None:\n            left',
        'if decision.do == "warn":\n            left',
        "test_timers.py::test_a_watcher_of_lost_files_warns_of_no_deadline_that_nobody_can_extend",
    ),
    (
        "what is handed over is not what the verb shows",
        "            lock, sidecar = state.files.lock, state.files.sidecar\n",
        "            host.worked_on = state.files.sidecar\n            lock, sidecar = state.files.lock, state.files.sidecar\n",
        "test_faults.py::test_what_is_handed_over_is_not_what_the_verb_shows",
    ),
    (
        "a lost guest without room and without a disk is stopped",
        "vm, no_login, partial(is_gone, now.disk))",
        "vm, no_login, bool)",
        "test_vm.py::test_a_guest_without_room_whose_state_and_disk_are_lost_can_be_stopped",
    ),
    (
        "a resume waits for the write that had no room",
        "    if was == NO_ROOM:\n        host.sleep(WRITE_TIME)\n",
        "",
        "test_vm.py::test_a_guest_that_soon_has_no_room_again_has_not_been_resumed",
    ),
    (
        "a watcher does not compile the program itself",
        'exec "$python" -I -S -c {lean} "$program" "$@"',
        'exec "$python" -I -S "$program" "$@"',
        "test_timers.py::test_a_watcher_is_small",
    ),
    (
        "a unit of another place is not armed",
        "return is_ours and self._has_a_time(host, timer.id)",
        "return self._has_a_time(host, timer.id)",
        "test_timers.py::test_a_unit_of_the_place_that_the_files_were_moved_from_is_not_armed",
    ),
    (
        "a watcher leaves where another has taken its place",
        "return runs_here and flock_held(self.files.watch_lock)",
        "return False",
        "test_timers.py::test_a_watcher_whose_place_another_has_taken_leaves",
    ),
    (
        "a copy is compared with its digest",
        "return digest.encode() in read_own(files.launcher)",
        "return True",
        "test_timers.py::test_a_copy_that_is_not_whole_is_no_timer",
    ),
    (
        "a timer looks whose folder it is",
        'own = "[ -O . ]"',
        'own = ":"',
        "test_faults.py::test_a_timer_runs_nothing_of_a_folder_that_another_user_has_made_again",
    ),
    (
        "a timer looks whether others can write to the folder",
        'shut = "! find . -prune -perm -020 -o -prune -perm -002 | grep -q ."',
        'shut = ":"',
        "test_faults.py::test_a_timer_runs_nothing_of_a_folder_that_another_user_has_made_again",
    ),
    (
        "a timer of root takes the folder of HOME's owner",
        "if len(trusted) > 1:\n        own",
        "if False:\n        own",
        "test_faults.py::test_a_timer_of_root_runs_in_the_folder_of_the_user_whose_home_it_has",
    ),
    (
        "no VM is started where its process could not be seen",
        'return os.readlink("/proc/self") == str(os.getpid())',
        "return True",
        "test_cli.py::test_without_its_own_proc_no_vm_is_started",
    ),
    (
        "a limit of CPU time is lifted as far as it can be",
        "resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))",
        "pass",
        "test_host.py::test_what_outlives_a_command_is_not_killed_by_the_limit_of_its_shell",
    ),
    (
        "a launcher runs the copy beside it",
        "folder=${{0%/*}}",
        "folder=$HOME",
        "test_faults.py::test_what_a_timer_has_started_runs_the_copy_of_the_folder_that_it_looked_at",
    ),
    (
        "a launcher answers its probe",
        'if runs.rstrip("\\n") != str(files.program):',
        "if False:",
        "test_timers.py::test_a_copy_that_is_not_whole_is_no_timer",
    ),
    (
        "an atd that is stopped does not run",
        'return name == "atd" and state not in STOPPED',
        'return name == "atd"',
        "test_timers.py::test_a_job_of_an_atd_that_is_stopped_is_no_guard",
    ),
    (
        "a moved VM is found by its lock",
        "return has_open(pid, files.vm_lock)",
        "return False",
        "test_vm.py::test_a_vm_whose_folder_was_moved_is_found_by_its_lock",
    ),
    (
        "what is saved has been read back",
        '_read_back(text.decode("ascii"), files)',
        "pass",
        "test_state.py::test_what_could_not_be_read_again_is_not_saved",
    ),
    (
        "a boot may have begun before 1970",
        "min(max(_EARLIEST_BOOT, state.booted_at + step), _LATEST)",
        "min(max(0, state.booted_at + step), _LATEST)",
        "test_lifetime.py::test_a_clock_below_the_uptime_gives_a_state_that_is_read_and_followed",
    ),
    (
        "a sweep ends a VM whose lock is held without end",
        "if every or running(host, files):",
        "if False:",
        "test_faults.py::test_a_lock_that_is_held_without_end_keeps_no_vm_from_its_end_and_no_other_waiting",
    ),
    (
        "a watcher of an older version is replaced",
        "is_watched(host, state) and _is_installed(host, state.files)",
        "is_watched(host, state)",
        "test_timers.py::test_a_watcher_that_is_no_good_is_replaced_by_the_next_verb",
    ),
    (
        "a deadline waits for no lock",
        "    except (Busy, NoLock):\n        _end_without_lock(host, files)\n",
        "    except (Busy, NoLock):\n",
        "test_timers.py::test_a_deadline_waits_for_no_lock_that_is_held_without_end",
    ),
    (
        "an expiry under way is left to its second try",
        "if decision.do not in ACTIONS or is_under_way:",
        "if decision.do not in ACTIONS:",
        "test_timers.py::test_a_deadline_waits_for_no_lock_that_is_held_without_end",
    ),
    (
        "set arms what was disarmed",
        "if how_far.exact and state.disarmed:\n        state = replace",
        "if False:\n        state = replace",
        "test_lifetime.py::test_set_puts_the_deadline_exactly_there_and_arms_it",
    ),
    (
        "a watcher that stands by leaves with its VM",
        "return not self._stands_by(self.known) or self.vm is not None",
        "return True",
        "test_timers.py::test_a_watcher_that_stands_by_leaves_with_its_vm",
    ),
    (
        "a watcher ends a VM whose files are gone",
        'how = self._stop_without_files(state, vm, f"it is {decision.why}")',
        'how = ""',
        "test_timers.py::test_a_watcher_ends_a_vm_whose_files_are_lost_at_the_deadline_it_knows",
    ),
    (
        "a watcher says the same once",
        "if str(error) != self.trouble:",
        "if True:",
        "test_timers.py::test_an_unreadable_sidecar_is_said_once_and_not_at_every_look",
    ),
    (
        "a guest's clock is set after its host has slept",
        "has_slept = self.by ==",
        "has_slept = False and self.by ==",
        "test_timers.py::test_a_watcher_sets_the_guests_clock_after_the_host_has_slept",
    ),
    (
        "a watcher has loaded all that it needs",
        "    for name in IMPORTED_LATER:\n        __import__(name)\n    os.close",
        "    os.close",
        "test_timers.py::test_a_watcher_loads_all_that_a_reap_imports_later",
    ),
    (
        "what the sibling's save drops comes back",
        "data = {**_dropped_fields(copy(), data, path), **data}",
        "pass",
        "test_state.py::test_what_the_sibling_drops_when_it_saves_is_kept_for_us",
    ),
    (
        "a copy of an earlier cluster's state is not used",
        'kept.pop("loginKey") == _login_key(path)',
        'kept.pop("loginKey") is not None',
        "test_state.py::test_a_cluster_that_the_sibling_makes_takes_nothing_from_an_earlier_one",
    ),
    (
        "an expiry under way is not that of another deadline",
        "gone |= _OF_EXPIRY",
        "pass",
        "test_state.py::test_an_expiry_that_was_under_way_is_not_that_of_the_siblings_deadline",
    ),
    (
        "no disk is kept in a cache",
        "        return siblings\n    return own",
        "        return siblings\n    return siblings",
        "test_state.py::test_what_cannot_be_made_again_is_not_kept_in_a_cache",
    ),
    (
        "a VM whose files are gone is in the way of another of its name",
        "    _refuse_lost(host, files)\n",
        "",
        "test_vm.py::test_a_vm_whose_files_are_gone_is_found_by_its_argv",
    ),
    (
        "a deadline without a budget is none",
        "return None if budget(state.max_run) is None else state.expires_at",
        "return state.expires_at",
        "test_lifetime.py::test_a_budget_that_is_none_has_no_agenda",
    ),
    (
        "a watcher outlives any failure",
        "except Exception as error:  # if this ended,",
        "except YclusterError as error:  # if this ended,",
        "test_timers.py::test_a_watcher_stays_whatever_fails_and_whatever_becomes_of_the_sidecar_"
        "while_the_vm_runs",
    ),
    (
        "a cluster has one watcher",
        "fd = take_flock(host, files.watch_lock, timeout=2)",
        "fd = os.open(files.watch_lock, os.O_RDWR | os.O_CREAT)",
        "test_timers.py::test_only_one_watcher_watches",
    ),
    (
        "a watcher lets go of its lock under the cluster's",
        "with cluster_lock(self.host, self.files):\n            if self._is_needed",
        "with contextlib.nullcontext():\n            if self._is_needed",
        "test_timers.py::test_a_watcher_that_leaves_gives_up_its_lock_before_an_arming_can_look",
    ),
    (
        "a watcher looks at the clock every few seconds",
        "self.host.sleep(max(0.02, min(WATCH_INTERVAL, wake - self.host.now())))",
        "self.host.sleep(max(0.02, wake - self.host.now()))",
        "test_timers.py::test_a_suspend_costs_a_watcher_one_interval_at_most",
    ),
    (
        "watch --all looks at the clock every few seconds",
        "host.sleep(min([WATCH_INTERVAL, *(left for left in ahead if left > 0)]))",
        "host.sleep(min([left for left in ahead if left > 0] or [WATCH_INTERVAL]))",
        "test_timers.py::test_a_suspend_costs_a_watcher_one_interval_at_most",
    ),
    (
        "a watcher stays with a VM whose sidecar can't be read",
        "if not self.readable:\n            return self.vm is not None",
        "if not self.readable:\n            return False",
        "test_timers.py::test_a_watcher_stays_whatever_fails_and_whatever_becomes_of_the_sidecar_"
        "while_the_vm_runs",
    ),
    (
        "status tells a guard that is gone",
        'if not shown["armed"]:\n        text = ',
        'if not shown["backend"]:\n        text = ',
        "test_faults.py::test_status_counts_on_no_timer_that_is_gone",
    ),
    (
        "a run takes nothing from the deadline of a cluster that ran before",
        "if was is not None and now is not None and now < was:",
        "if False:",
        "test_hold.py::test_a_run_never_shortens_the_life_of_a_cluster_that_ran_before",
    ),
    (
        "a teardown of a copy leaves the names of the original",
        "    _leave_names(host, state)\n",
        "    leave_kubeconfig(host, state)\n",
        "test_k3s.py::test_a_teardown_of_a_copy_leaves_the_names_of_the_original",
    ),
    (
        "a guest that had just been suspended is not torn down",
        "if not how and (not ending or state.suspended is not None):",
        "if not how and not ending:",
        "test_suspend.py::test_a_guest_that_had_just_been_suspended_is_not_torn_down_at_its_deadline",
    ),
    (
        "a state of before the suspend costs no memory",
        "has_a_memory = kept.suspended is not None and state.suspended is None",
        "has_a_memory = False",
        "test_suspend.py::test_a_state_that_came_back_from_before_the_suspend_costs_no_memory",
    ),
    (
        "a state of before the last start tears nothing down",
        "is_of_a_later_start = (kept.started_at or 0) > (state.started_at or 0)",
        "is_of_a_later_start = False",
        "test_timers.py::test_a_state_that_came_back_from_before_the_last_start_tears_nothing_down",
    ),
    (
        "a VM that its expiry has paused is left, whatever QEMU calls that",
        "return status_of(host, state) in _MAY_RUN",
        'return status_of(host, state) not in (*OFF, "paused", "unseen")',
        "test_timers.py::test_a_vm_that_a_full_disk_holds_up_stays_as_its_expiry_has_left_it",
    ),
    (
        "no edit of maxTotal ends a hold at once",
        "    if latest is not None and latest <= clock.now and length is not None:\n",
        "    if False:\n",
        "test_reconfigure.py::test_a_hold_without_an_end_gets_one_with_the_budget",
    ),
    (
        "a start that is refused has discarded nothing",
        "            state = replace(state, suspended=None)\n        now = status_of",
        "            state = _discard_memory(host, state)\n        now = status_of",
        "test_suspend.py::test_a_start_that_is_refused_has_discarded_nothing",
    ),
    (
        "a resume keeps the machine",
        '        prepared="",\n    )\n    return bounded_holds(fresh, clock)',
        "        ran_with='',\n    )\n    return bounded_holds(fresh, clock)",
        "test_timers.py::test_what_a_resume_starts_anew_is_the_budget_and_not_the_machine",
    ),
    (
        "a start bounds the holds of before",
        "    return bounded_holds(fresh, clock)",
        "    return fresh",
        "test_hold.py::test_a_hold_without_an_end_gets_one_with_the_budget_of_a_start",
    ),
    (
        "a watcher stays beside a VM that runs without an end",
        "return self.vm is not None and _runs_without_end(self.host, self.known)",
        "return False",
        "test_timers.py::test_a_watcher_stays_beside_a_vm_whose_state_says_that_it_is_stopped",
    ),
    (
        "what was disarmed counts as used once it is armed again",
        "state = watched_from(replace(state, timers=()), host.clock())",
        "state = replace(state, timers=())",
        "test_timers.py::test_what_was_disarmed_counts_as_used_once_it_is_armed_again",
    ),
    (
        "a copy of a cacheDir takes away no timer of the original",
        "            if other and not is_gone(Path(other)):\n",
        "            if False:\n",
        "test_timers.py::test_a_copy_of_a_cachedir_takes_away_no_timer_of_the_original",
    ),
    (
        "a run leaves the deadline of what was paused",
        '(before != "paused" or current(host, files).counts)',
        'before != "paused"',
        "test_hold.py::test_a_run_in_a_cluster_that_its_user_had_paused_leaves_the_deadline_as_it_was",
    ),
    (
        "what is armed again after its deadline gets a fresh budget",
        "            if _used_up(state, host.now()):  # while nothing was to end it\n",
        "            if False:\n",
        "test_timers.py::test_what_is_armed_again_after_its_deadline_gets_a_fresh_budget",
    ),
    (
        "an edited maxTotal limits the deadline of now",
        "state = bounded_holds(within_total(state, clock), clock)",
        "state = bounded_holds(state, clock)",
        "test_reconfigure.py::test_a_max_total_that_is_edited_limits_the_deadline_of_now",
    ),
    (
        "no edit of maxTotal ends a VM at once",
        "    if latest <= clock.now:\n        latest = _end_of(length, clock)\n",
        "",
        "test_reconfigure.py::test_a_max_total_that_is_edited_limits_the_deadline_of_now",
    ),
    (
        "a budget bounds the holds of before",
        "limits.append(_end_of(length, clock))",
        "pass",
        "test_reconfigure.py::test_a_hold_without_an_end_gets_one_with_the_budget",
    ),
    (
        "a VM that runs with no deadline gets one by the next reap",
        "            saved = _see_to_deadline(host, saved)\n",
        "            pass\n",
        "test_timers.py::test_a_vm_that_was_continued_behind_our_back_gets_a_deadline",
    ),
    (
        "the next command sees to a VM that runs with no deadline",
        "    if _runs_without_end(host, state):\n        return True\n    if not moments:",
        "    if not moments:",
        "test_timers.py::test_a_vm_that_was_continued_behind_our_back_gets_a_deadline",
    ),
    (
        "what doctor can't look into hides nothing else",
        "    except (YclusterError, OSError) as error:\n        yield Finding(name,",
        "    except ZeroDivisionError as error:\n        yield Finding(name,",
        "test_telling.py::test_what_doctor_cannot_look_into_hides_no_other_finding",
    ),
    (
        "doctor tells a deadline without a guard",
        '    if trouble:\n        text = f"no timer',
        '    if False:\n        text = f"no timer',
        "test_telling.py::test_doctor_finds_what_is_left_over",
    ),
    (
        "doctor takes no guard for a leftover",
        "if path and (path in ours or is_gone(Path(path))):",
        "if path:",
        "test_telling.py::test_doctor_finds_what_is_left_over",
    ),
    (
        "what a file server that is away has tells nothing",
        "        if error.errno in NOT_THERE:\n            return False\n        raise",
        "        if not isinstance(error, PermissionError):\n            return False\n        raise",
        "test_access.py::test_a_cluster_on_a_file_server_that_is_away_is_not_taken_for_none",
    ),
    (
        "the timer of a cluster on a file server that is away stays",
        "        return error.errno in NOT_THERE\n",
        "        return not isinstance(error, PermissionError)\n",
        "test_prune.py::test_a_timer_of_a_cluster_on_a_file_server_that_is_away_stays",
    ),
    (
        "doctor fails where something is wrong",
        "return PrerequisiteError.exit_code if failed else 0",
        "return 0",
        "test_telling.py::test_doctor_finds_what_is_left_over",
    ),
    (
        "whatever goes wrong, a disk powers its machine off",
        "FailureAction=poweroff\n",
        "\n",
        "test_appliance.py::test_a_disk_powers_its_machine_off_unless_the_file_is_there_and_can_be_removed",
    ),
    (
        "a power-off that was postponed comes later",
        "OnUnitInactiveSec={again}s\n",
        "",
        "test_appliance.py::test_a_disk_warns_ten_minutes_before_it_powers_its_machine_off_and_counts_anew_when_postponed",
    ),
    (
        "a disk warns before it powers its machine off",
        "first=seconds - before),",
        "first=seconds),",
        "test_appliance.py::test_a_disk_warns_ten_minutes_before_it_powers_its_machine_off_and_counts_anew_when_postponed",
    ),
    (
        "a postponement that can't be told is one all the same",
        "ExecStartPost=-{tell}",
        "ExecStartPost={tell}",
        "test_appliance.py::test_a_warning_reaches_the_terminals_and_the_console_whatever_becomes_of_wall",
    ),
    (
        "the timer on a disk is enabled",
        'argv += ["--link"',
        'argv += ["--touch"',
        "test_appliance.py::test_the_timer_comes_with_max_run_stays_one_and_goes_without_it",
    ),
    (
        "without --max-run the timer goes",
        "rm -rf {SYSTEM_UNITS}/{POWER_OFF}* {SYSTEM_UNITS}/",
        "rm -rf {SYSTEM_UNITS}/",
        "test_appliance.py::test_the_timer_comes_with_max_run_stays_one_and_goes_without_it",
    ),
    (
        "the README of a bundle tells of the disk's own expiry",
        "    if not state.disk_max_run:\n",
        "    if True:\n",
        "test_appliance.py::test_the_timer_comes_with_max_run_stays_one_and_goes_without_it",
    ),
    (
        "a disk runs for a minute at least",
        "if not 60 <= seconds <= 365 * 86400:",
        "if not seconds <= 365 * 86400:",
        "test_appliance.py::test_a_max_run_that_is_no_duration_or_beyond_reason_is_refused_and_nothing_is_touched",
    ),
    (
        "a disk whose second preparation failed is not prepared",
        'state = save_state(replace(state, prepared="live"))',
        "state = save_state(state)",
        "test_appliance.py::test_a_prepared_disk_that_could_not_be_prepared_again_does_not_count_as_prepared",
    ),
    (
        "a prepared disk mounts a data volume",
        "write its data to the boot disk. The volume is not part of the export; a boot can do without it.\n{ADD_DATA_ENTRY}",
        "write its data to the boot disk. The volume is not part of the export; a boot can do without it.\n",
        "test_appliance.py::test_a_prepared_disk_mounts_a_data_volume_though_the_cluster_had_none",
    ),
    (
        "a user's own entry for the data volume stays alone",
        '-e "$label" -e "$folder"',
        '-e "$label"',
        "test_appliance.py::test_a_prepared_disk_keeps_the_entry_of_its_data_volume",
    ),
    (
        "an entry is a line of its own",
        '  [ -z "$(tail -c 1 /etc/fstab 2>/dev/null)" ] || echo >>/etc/fstab\n',
        "",
        "test_appliance.py::test_a_prepared_disk_mounts_a_data_volume_though_the_cluster_had_none",
    ),
    (
        "a disk under a running VM is not exported",
        'if running(host, state.files):\n        hint = f"`ycluster prepare-export',
        'if False:\n        hint = f"`ycluster prepare-export',
        "test_appliance.py::test_a_bundle_never_overwrites_and_needs_a_stopped_cluster",
    ),
    (
        "an export overwrites nothing",
        "if os.path.lexists(bundle) and (not bundle.is_dir() or any(bundle.iterdir())):",
        "if os.path.lexists(bundle) and not bundle.is_dir():",
        "test_appliance.py::test_a_bundle_never_overwrites_and_needs_a_stopped_cluster",
    ),
    (
        "an import replaces no only copy",
        "if there == str(files.disk) or not os.path.exists(there):",
        "if there == str(files.disk):",
        "test_appliance.py::test_an_import_replaces_no_disk_that_has_no_other_copy",
    ),
    (
        "a data disk is no boot disk to import",
        "    _refuse_data_disks_of([other for _, other in readable(host)], files)\n",
        "",
        "test_appliance.py::test_a_data_disk_of_one_cluster_is_no_boot_disk_of_another",
    ),
    (
        "a user's folder is not that of imports",
        "if path == self.incoming and self._is_users_import():",
        "if False:",
        "test_appliance.py::test_a_folder_of_the_users_stays_where_an_import_has_its_own",
    ),
    (
        "a bundle has no name of a cluster's own",
        '        if _own_name_at(real, files):\n            why = f"{bundle}',
        '        if False:\n            why = f"{bundle}',
        "test_appliance.py::test_a_bundle_is_put_where_no_teardown_removes_it",
    ),
    (
        "an export that fails leaves nothing",
        "finally:\n            remove_folder(part)\n    except",
        "finally:\n            pass\n    except",
        "test_appliance.py::test_a_program_that_fails_half_way_leaves_nothing_and_its_words",
    ),
    (
        "an import is held to its checksums",
        "if digest_fault(host, disk, (found[1] or found[2]).lower()):",
        "if False:",
        "test_appliance.py::test_what_is_no_whole_disk_is_not_imported",
    ),
    (
        "an import that is refused makes nothing",
        "_refuse_disk(host, files, disk)\n    _check_sums",
        "_check_sums",
        "test_appliance.py::test_an_import_never_replaces_a_cluster",
    ),
    (
        "an import that is killed is known by its mark",
        "save_state(replace(state_from_config(config, files.cache_dir), imported=str(disk)))\n"
        "            made.replace(files.disk)",
        "made.replace(files.disk)\n"
        "            save_state(replace(state_from_config(config, files.cache_dir), imported=str("
        "disk)))",
        "test_appliance.py::test_an_import_that_is_killed_leaves_no_disk_without_its_mark",
    ),
    (
        "an import replaces no cluster",
        "_refuse_disk(host, files, disk)\n        try:",
        "try:",
        "test_appliance.py::test_an_import_never_replaces_a_cluster_that_came_meanwhile",
    ),
    (
        "an import replaces no disk that was kept",
        "if there == str(files.disk) or not os.path.exists(there):",
        "if False:",
        "test_hold.py::test_a_disk_that_was_kept_stays_whatever_fails",
    ),
    (
        "a run keeps a disk that a teardown has kept",
        'return "imported" if _is_disk_kept(host, files) else "absent"',
        'return "absent"',
        "test_hold.py::test_run_leaves_a_cluster_as_it_found_it",
    ),
    (
        "what may be anybody's is no disk that was kept",
        "os.close(open_own(path, os.O_RDONLY))\n        except",
        "os.stat(path)\n        except",
        "test_hold.py::test_a_disk_that_nobody_is_known_to_have_kept_is_not_booted",
    ),
    (
        "a disk that was kept keeps its login key",
        "    if state.imported != str(files.disk) or not files.ssh_key.exists():\n        _make_key(",
        "    if True:\n        _make_key(",
        "test_machine.py::test_a_disk_that_was_kept_is_grown_at_most_and_keeps_its_login",
    ),
    (
        "a list looks through all processes once",
        "    host.qemus = [pid for pid in pids() if pidfiles(pid)]",
        "    host.qemus = None",
        "test_vm.py::test_list_looks_through_all_processes_once_however_many_clusters_there_are",
    ),
    (
        "a list finds a VM whose pidfile is lost",
        "    host.qemus = [pid for pid in pids() if pidfiles(pid)]",
        "    host.qemus = []",
        "test_vm.py::test_list_looks_through_all_processes_once_however_many_clusters_there_are",
    ),
    (
        "a disk alone is the sibling's in the sibling's folder only",
        "return is_siblings and _is_whole_disk(files)",
        "return _is_whole_disk(files)",
        "test_hold.py::test_a_disk_that_the_siblings_import_staged_is_booted",
    ),
    (
        "a disk alone that builds on another was not imported",
        "    except (NoDisk, OSError):\n        return False",
        "    except (NoDisk, OSError):\n        return True",
        "test_hold.py::test_a_disk_that_the_siblings_import_staged_is_booted",
    ),
    (
        "a disk that is there is imported where it is",
        "made = disk if disk == files.disk else _convert_import(host, disk, files)",
        "made = _convert_import(host, disk, files)",
        "test_hold.py::test_a_disk_that_the_siblings_import_staged_is_booted",
    ),
    (
        "users that are no list are refused",
        "    if _displaces_users(text):",
        "    if False:",
        "test_guest.py::test_user_data_that_cloud_init_would_pass_over_or_that_displaces_our_login_is_refused",
    ),
    (
        "a provision of a stopped cluster starts it",
        "    if _can_start(host, files):",
        "    if False:",
        "test_hold.py::test_a_provision_boots_the_disk_that_is_there_by_the_config_as_it_is_now",
    ),
    (
        "a job's cluster has a context of its own",
        "replace(config, name=own_name, context=own_name)",
        "replace(config, name=own_name)",
        "test_hold.py::test_each_job_can_have_a_cluster_of_its_own_by_one_config",
    ),
    (
        "an empty text is the default",
        "empty = is_scalar and (not keep_empty",
        "empty = False and (not keep_empty",
        "test_config.py::test_an_empty_text_is_the_default_as_it_is_to_the_sibling",
    ),
    (
        "keys of P-256 where ed25519 is refused",
        '"-t", "ecdsa", "-b", "256"',
        '"-t", "ed25519"',
        "test_machine.py::test_a_host_that_refuses_ed25519_makes_keys_of_p_256",
    ),
    (
        "kubectl runs in the user's folder",
        "env=env, cwd=working_folder()).stdout",
        "env=env).stdout",
        "test_k3s.py::test_a_kubectl_that_goes_by_the_working_folder_and_the_environment_finds_"
        "both",
    ),
    (
        "a start of a cluster in tap mode is refused before anything is changed",
        "    _check_mode(host, files)\n    _check_host(host)\n",
        "    _check_host(host)\n",
        "test_tap.py::test_what_would_have_to_start_it_is_not_implemented_and_changes_nothing",
    ),
    (
        "a cluster in tap mode is never booted in user mode",
        "_refuse_start(state)  # again: it may have been stopped meanwhile",
        "pass",
        "test_tap.py::test_one_that_is_stopped_meanwhile_is_not_booted_in_another_mode",
    ),
    (
        "a suspend in tap mode is refused before anything is changed",
        "    _refuse_suspend(load_state(files))\n    hand_over(",
        "    hand_over(",
        "test_tap.py::test_what_would_have_to_start_it_is_not_implemented_and_changes_nothing",
    ),
    (
        "an expiry does not suspend what no start could go on with",
        "    _refuse_suspend(state)\n    files = state.files\n",
        "    files = state.files\n",
        "test_tap.py::test_its_expiry_stops_it_and_by_a_suspend_too",
    ),
    (
        "a run in tap mode is refused before anything is changed",
        "if has_state(files):\n            _check_mode(host, files)\n",
        "if has_state(files):\n",
        "test_tap.py::test_what_would_have_to_start_it_is_not_implemented_and_changes_nothing",
    ),
    (
        "a run that is to end with a suspend in tap mode does not begin",
        'if then == "suspend":\n                _refuse_suspend(',
        "if False:\n                _refuse_suspend(",
        "test_tap.py::test_a_suspend_of_one_that_runs_leaves_it_running",
    ),
    (
        "no port of this host is asked for in tap mode",
        "    if state.guest_address:\n        return []\n    wanted = [",
        "    wanted = [",
        "test_tap.py::test_no_port_of_this_host_is_asked_for",
    ),
    (
        "an edited port is no difference in tap mode",
        "    if state.guest_address:\n        return []\n    return _differences(",
        "    return _differences(",
        "test_tap.py::test_of_a_tap_network_only_the_mode_and_the_address_can_differ",
    ),
    (
        "connections to a guest with an address of its own can't be counted",
        "elif state.guest_address:  # what",
        "elif False:  # what",
        "test_tap.py::test_nobody_can_tell_that_it_is_unused",
    ),
    (
        "no forwarded port is shown in tap mode",
        "forwarded = () if tap else state.port_forwards",
        "forwarded = state.port_forwards",
        "test_tap.py::test_it_is_shown_with_its_address_and_without_a_port_of_this_host",
    ),
    (
        "the command of run gets the port of the guest",
        "str(state.ssh_at[1])",
        "str(state.ssh_port)",
        "test_tap.py::test_the_command_of_run_gets_the_guests_port",
    ),
    (
        "prune looks again under the lock before it removes anything",
        "same = [one for one in now if (one.name, one.path) == (item.name, item.path)]",
        "same = [item] if now is not None else []",
        "test_prune.py::test_a_cluster_that_was_started_since_it_was_listed_stays",
    ),
    (
        "no teardown removes a disk that another builds on",
        "keep_disk = keep_disk or _is_built_on(host, files)",
        "keep_disk = keep_disk or bool(_is_built_on(host, files) and 0)",
        "test_prune.py::test_a_disk_that_another_builds_on_goes_with_no_cluster",
    ),
    (
        "no prune tears down a cluster whose disk another builds on",
        "if unused is None or is_base:",
        "if unused is None:",
        "test_prune.py::test_a_disk_that_another_builds_on_goes_with_no_cluster",
    ),
    (
        "a disk that has run is not made anew, whatever its state says",
        "if state.is_half_made and console.is_file() and console.stat().st_size:",
        "if False:",
        "test_appliance.py::test_a_disk_that_has_run_is_not_made_anew_though_its_state_says_so",
    ),
    (
        "the timer of a path that can't be read is left",
        'return "" if found is None else found[1] or found[2]',
        "return re.search(\"--state '?(.*?)'? --by \", text)[1]",
        "test_prune.py::test_a_timer_of_a_cluster_that_cannot_be_read_stays_whatever_its_folder_is_called",
    ),
    (
        "an export is a use",
        "        mark_used(host, files.sidecar)\n",
        "",
        "test_appliance.py::test_a_cluster_that_is_exported_is_in_use",
    ),
    (
        "what a verb shows in the end is what it was about",
        "    if host.worked_on:  #",
        "    if False:  #",
        "test_cli.py::test_what_a_verb_shows_in_the_end_is_the_cluster_that_it_was_about",
    ),
    (
        "the Host block stands on its own after whatever is there",
        'lines = ["", f"Host {state.name}"]',
        'lines = [f"Host {state.name}"]',
        "test_machine.py::test_the_host_block_gives_ssh_what_our_command_gives_it",
    ),
    (
        "no ProxyCommand of the user's stands before the guest",
        ', "ProxyCommand": "none"}',
        "}",
        "test_machine.py::test_the_host_block_gives_ssh_what_our_command_gives_it",
    ),
    (
        "an import says where nothing has checked its disk",
        "    if not every:\n        host.output.warn(",
        "    if False:\n        host.output.warn(",
        "test_appliance.py::test_of_what_checksums_name_the_disk_alone_is_read",
    ),
    (
        "a guest that was ended while it was prepared is not said to run on",
        "        if not running(host, state.files):\n            message",
        "        if False:\n            message",
        "test_appliance.py::test_a_guest_whose_deadline_comes_while_it_is_prepared_does_not_run_on",
    ),
    (
        "init writes a name that is read back",
        "is_text = parse_yaml(name, name).value == name",
        "is_text = True",
        "test_config.py::test_what_init_writes_has_the_name_of_the_folder",
    ),
    (
        "a kubeconfig that kubectl can't read is told, and the cluster gets its own",
        "        try:\n            _view(host, file)\n",
        "        try:\n            pass\n",
        "test_k3s.py::test_a_kubeconfig_that_cannot_be_used_is_told_before_and_the_cluster_gets_its_own",
    ),
    (
        "nobody waits for a FIFO among the kubeconfigs",
        "if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):",
        "if False:",
        "test_k3s.py::test_a_kubeconfig_that_cannot_be_used_is_told_before_and_the_cluster_gets_its_own",
    ),
    (
        "names leave the kubeconfig under the lock by which others come in",
        "with _told_of_names(host, state), claim_lock(host):",
        "with _told_of_names(host, state):",
        "test_k3s.py::test_names_are_removed_under_that_lock",
    ),
    (
        "a disk in a folder of a cacheDir keeps its image",
        "for place, _, names in os.walk(folder):",
        "for place, _, names in [next(os.walk(folder))]:",
        "test_prune.py::test_an_image_that_any_disk_builds_on_stays",
    ),
    (
        "prune looks at a timer under its cluster's lock",
        "            if not is_gone(sidecar):\n                lock = _lock_of",
        "            if False:\n                lock = _lock_of",
        "test_prune.py::test_a_timer_that_a_cluster_has_armed_meanwhile_stays",
    ),
    (
        "no image goes that a disk builds on",
        "if identity(found.path) not in used:",
        "if identity(found.path) not in () or used:",
        "test_prune.py::test_an_image_that_any_disk_builds_on_stays",
    ),
    (
        "no image goes where a cluster's disk is away, or yet to be made",
        "    if away:\n        raise StateError",
        "    if False:\n        raise StateError",
        "test_prune.py::test_images_and_releases_stay_where_nobody_can_tell_who_uses_them",
    ),
    (
        "an image that a provision has taken is young again",
        "                mark_used(host, known)\n",
        "                pass\n",
        "test_prune.py::test_what_a_provision_has_just_taken_is_young_again",
    ),
    (
        "no memory of a cluster is pruned",
        "if state.started_at is None or state.suspended or os.path.lexists(files.memory):",
        "if state.started_at is None or state.suspended:",
        "test_prune.py::test_the_memory_of_a_cluster_is_never_pruned_whatever_its_state_says",
    ),
    (
        "prune removes nothing by way of a folder that is a link",
        "        if folder.is_symlink() or not folder.is_dir():\n            return []",
        "        if not folder.is_dir():\n            return []",
        "test_prune.py::test_a_link_a_folder_and_a_file_that_others_can_write_to_are_no_images",
    ),
    (
        "what prune can't remove keeps it from nothing else, and is its exit code",
        '        host.output.warn(f"{item.name} stays: {error}")\n        return',
        "        raise\n        return",
        "test_prune.py::test_one_that_fails_is_named_and_the_rest_goes",
    ),
    # --- 20 CLI
    (
        "what other programs write for us is private",
        "umask = os.umask(0o077)",
        "umask = os.umask(0o022)",
        "test_faults.py::test_every_verb_leaves_files_and_directories_private",
    ),
    (
        "a verb can't be put to sleep with a lock in its hand",
        "    signal.signal(signal.SIGTSTP, signal.SIG_IGN)\n    return umask",
        "    return umask",
        "test_vm.py::test_a_verb_cannot_be_put_to_sleep_with_a_lock_in_its_hand",
    ),
    # --- what a stop, a launch and a bundle do in which order
    (
        "QEMU holds its lock",
        "cwd=files.cache_dir, pass_fds=(fd,)",
        "cwd=files.cache_dir",
        "test_machine.py::test_qemu_holds_its_lock_to_its_last_breath",
    ),
    (
        "a clean shutdown is the guest's own",
        'CLEAN = ("guest-shutdown", "ssh poweroff")',
        'CLEAN = ("guest-shutdown", "ssh poweroff", "QMP quit")',
        "test_vm.py::test_only_a_guest_that_shut_down_by_itself_is_prepared_for_export",
    ),
    (
        "a pid is looked at again once it can't be recycled",
        "if is_qemu_of(pid, files) and not exited(pidfd, 0):",
        "if not exited(pidfd, 0):",
        "test_vm.py::test_a_pid_that_comes_to_mean_another_process_during_the_look_is_not_the_vm",
    ),
    (
        "a port in TIME_WAIT can be bound",
        "probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)",
        "pass",
        "test_faults.py::test_a_port_whose_connections_have_just_ended_can_be_had",
    ),
    (
        "a closed terminal ends a verb as Ctrl-C does",
        "for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n        if signal.getsignal(signum) is not signal.SIG_IGN:  # as",
        "for signum in (signal.SIGINT, signal.SIGTERM):\n        if signal.getsignal(signum) is not signal.SIG_IGN:  # as",
        "test_cli.py::test_a_signal_ends_it_with_130",
    ),
    (
        "what is gzipped is known by its content",
        "if is_tar(unzipped(head)):\n        source",
        'if disk.name.endswith(".gz") and is_tar(unzipped(head)):\n        source',
        "test_appliance.py::test_what_is_gzipped_is_known_by_its_content_whatever_its_name",
    ),
    (
        "a bundle gets its name last",
        "            yield part\n",
        "            part.rename(folder)\n            yield folder\n            folder.rename(part)\n",
        "test_appliance.py::test_a_bundle_gets_its_name_once_its_checksums_are_in_it",
    ),
    (
        "an export that fails leaves no folders above it",
        "above.rmdir()",
        "pass",
        "test_appliance.py::test_a_program_that_fails_half_way_leaves_nothing_and_its_words",
    ),
    (
        "what is zero is not packed",
        'if extent["data"] and not extent["zero"]:',
        "if True:",
        "test_appliance.py::test_what_is_compressed_in_its_image_or_reads_as_zero_is_packed_right",
    ),
    (
        "k3s keeps its volumes on the data disk",
        "written += K3S_ON_DATA_DISK",
        "pass",
        "test_machine.py::test_k3s_keeps_its_volumes_on_the_data_disk_if_there_is_one",
    ),
    (
        "a mistake is told with the line to write",
        'why = f"{why}; {meant}"',
        "pass",
        "test_config.py::test_a_common_mistake_is_told_with_the_line_to_write",
    ),
    (
        "where all is advised, the schema is not pointed to",
        'hint = "" if is_advised else',
        'hint = "" if False else',
        "test_config.py::test_a_common_mistake_is_told_with_the_line_to_write",
    ),
    (
        "memory in gigabytes is that many times 1024",
        '* (1024 if found[2] in "Gg" else 1)',
        "* 1000",
        "test_config.py::test_memory_may_be_in_gigabytes",
    ),
    (
        "init never overwrites",
        "if os.path.lexists(directory / name):",
        "if False:",
        "test_config.py::test_a_config_to_start_with_is_right_and_never_overwrites",
    ),
    (
        "12am is midnight",
        "return hour % 12 + afternoon, minute",
        "return hour + afternoon, minute",
        "test_durations.py::test_until_is_the_next_time_at_which_a_clock_here_shows_it",
    ),
    (
        "a verb shows the state afterwards, and only where it succeeded",
        'if then_show == "json" and code == 0:',
        "if False:",
        "test_cli.py::test_the_state_afterwards_can_be_had_as_json",
    ),
    (
        "a day is 24 hours",
        "* 86400 * 10**9",
        "* 864000 * 10**9",
        "test_cli.py::test_a_duration_on_the_command_line_may_have_days",
    ),
    (
        "a word before the dashes names the cluster",
        "args[BY_NAME.dest] = _placed(words.pop(0))",
        "words.pop(0)",
        "test_cli.py::test_before_a_command_stands_the_cluster",
    ),
    (
        "an unknown verb is told with the nearest",
        "if nested else _nearest(word, known)",
        'if nested else ""',
        "test_cli.py::test_a_word_that_is_none_is_told_with_the_nearest",
    ),
    (
        "an unknown option is told with the nearest",
        "message += _nearest(unknown[1]",
        "message += ''and _nearest(unknown[1]",
        "test_cli.py::test_a_word_that_is_none_is_told_with_the_nearest",
    ),
    (
        "the manifest comes before the disk",
        "parts = (envelope, manifest, disk)",
        "parts = (envelope, disk, manifest)",
        "test_appliance.py::test_an_ova_is_a_descriptor_its_manifest_and_the_disk_in_this_order",
    ),
    (
        "an OVA's disk is a file in the folder",
        're.fullmatch(r"(?i)(?:\\./)?[^/.-][^/]*\\.vmdk", name)',
        'name.endswith(".vmdk")',
        "test_appliance.py::test_a_tar_that_is_no_ova_with_one_disk_is_not_imported",
    ),
    (
        "pigz's failure is told in its words",
        "process.wait(10)",
        "pass",
        "test_appliance.py::test_a_program_that_fails_half_way_leaves_nothing_and_its_words",
    ),
    (
        "events without end hold no deadline up",
        "if self.monotonic() > until:",
        "if False:",
        "test_qmp.py::test_events_without_end_do_not_hold_a_deadline_up",
    ),
    (
        "a foreground watch waits for a verb at work",
        "            if self._is_needed():\n                return False\n            if fd",
        "            if fd",
        "test_timers.py::test_a_watch_waits_for_the_verb_that_is_giving_the_cluster_its_deadline",
    ),
    # --- unused, held, and run
    (
        "a look sees what holds",
        "HELD: look.holds,",
        "HELD: False,",
        "test_idle.py::test_a_look_tells_by_what_it_is_used",
    ),
    (
        "a connection is use",
        "CONNECTION: look.connections,",
        "CONNECTION: 0,",
        "test_idle.py::test_a_look_tells_by_what_it_is_used",
    ),
    (
        "what can't be told is use",
        "UNMEASURED: unknown,",
        "UNMEASURED: False,",
        "test_idle.py::test_a_look_tells_by_what_it_is_used",
    ),
    (
        "CPU time is use",
        "CPU: state.idle_cpu and (percent or 0) > state.idle_cpu,",
        "CPU: False,",
        "test_idle.py::test_a_look_tells_by_what_it_is_used",
    ),
    (
        "a late look is use",
        "LATE: _is_late(state, clock),",
        "LATE: False,",
        "test_idle.py::test_the_use_of_a_verb_and_of_a_late_look_is_told_too",
    ),
    (
        "a sleep of the host makes a look late",
        "if clock.slept > idle.slept + 2:",
        "if False:",
        "test_idle.py::test_the_use_of_a_verb_and_of_a_late_look_is_told_too",
    ),
    (
        "what a look has seen was so until the next",
        "used = now if by or before.by in SAMPLED else before.used",
        "used = now if by else before.used",
        "test_idle.py::test_what_was_in_use_at_one_look_was_so_until_the_next",
    ),
    (
        "another QEMU's CPU time is no telling",
        "    if spent < 0:  # another QEMU, which somebody has started meanwhile\n        return None\n",
        "",
        "test_idle.py::test_a_vm_that_somebody_else_has_started_meanwhile_is_no_telling",
    ),
    (
        "only a look of just now ends what is unused",
        "not idle.by and 0 <= now - idle.seen <= LOOK_AGE",
        "not idle.by",
        "test_idle.py::test_only_a_look_of_just_now_ends_it",
    ),
    (
        "looks are a minute apart at least",
        "min(max(limit // (6 * 10**9), 60), 900)",
        "min(limit // (6 * 10**9), 900)",
        "test_idle.py::test_looks_are_at_least_a_minute_and_at_most_15_apart",
    ),
    (
        "use takes an end back that has begun",
        "return _called_off(state, clock.now) if by else state",
        "return state",
        "test_idle.py::test_an_end_that_failed_is_tried_again_and_taken_back_where_it_is_used_again",
    ),
    (
        "what the guest connects to is no use of it",
        'r"\\S+ +\\d+ +10\\.0\\.2\\.15 +\\d+ "',
        'r"\\S+ +\\d+ +\\S+ +\\d+ "',
        "test_idle.py::test_the_connections_that_lead_into_the_guest_are_counted_and_no_others",
    ),
    (
        "a deadline waits for what holds",
        '        return Decision("held", why, due, again=int(clock.now + HOLD_LOOK))',
        "        pass",
        "test_hold.py::test_nothing_expires_while_it_is_held_and_after_a_warning_soon_after",
    ),
    (
        "a pid that is given again holds nothing",
        "process_start(hold.pid) == hold.began > 0",
        "process_start(hold.pid) > 0",
        "test_hold.py::test_what_is_not_that_process_holds_nothing",
    ),
    (
        "nothing of another boot holds",
        "in_time and hold.boot == clock.boot_id and",
        "in_time and",
        "test_hold.py::test_what_is_not_that_process_holds_nothing",
    ),
    (
        "a hold ends when it is to",
        "return in_time and hold.boot",
        "return hold.boot",
        "test_hold.py::test_a_hold_ends_when_it_is_to_whatever_becomes_of_its_command",
    ),
    (
        "no hold passes maxTotal",
        "return min(limits, default=None)",
        "return limits[0] if limits else None",
        "test_hold.py::test_a_hold_is_for_one_budget_or_as_asked_and_within_max_total",
    ),
    (
        "the end of the last hold is told first",
        "    if was_held:",
        "    if False:",
        "test_hold.py::test_nothing_expires_while_it_is_held_and_after_a_warning_soon_after",
    ),
    (
        "a hold that ended before the deadline delays nothing",
        "was_held = bool(state.holds) and state.retry_at is not None",
        "was_held = bool(state.holds)",
        "test_hold.py::test_a_hold_that_ended_before_the_deadline_delays_nothing",
    ),
    (
        "the command has the user's umask",
        "                umask=self.umask,\n",
        "",
        "test_hold.py::test_the_command_has_the_users_environment_folder_input_and_umask",
    ),
    (
        "a terminal's Ctrl-C reaches the command once",
        "if got.si_signo != signal.SIGCHLD and got.si_code <= 0:",
        "if got.si_signo != signal.SIGCHLD:",
        "test_hold.py::test_ctrl_c_reaches_the_command_once",
    ),
    (
        "a signal to run reaches its command",
        "                    _pass_on(process, got.si_signo)",
        "                    pass",
        "test_hold.py::test_a_signal_to_run_reaches_its_command_and_the_clean_up_still_comes",
    ),
    (
        "run undoes nothing that it did not do",
        "if not mine and brought != _run_of(state):",
        "if False:",
        "test_hold.py::test_a_cluster_that_was_made_anew_meanwhile_is_not_torn_down test_hold.py::test_what_somebody_else_has_made_meanwhile_is_not_torn_down",
    ),
    (
        "run leaves a cluster that another holds",
        "    if others:\n        host",
        "    if False:\n        host",
        "test_hold.py::test_a_cluster_that_another_holds_is_left_to_them",
    ),
    (
        "of two runs the last undoes what the first did",
        "        _hand_on(state, others, undo)\n",
        "",
        "test_hold.py::test_of_two_runs_the_last_undoes_what_the_first_did",
    ),
    (
        "a failure of ycluster's own is told apart",
        "    return OWN_FAILURE\n\n\ndef _run(",
        "    return code\n\n\ndef _run(",
        "test_hold.py::test_a_failure_of_our_own_is_told_apart",
    ),
    (
        "STATE and LEFT stay where a terminal is narrow",
        'LIST_SPARE = ("", "CONTEXT", ',
        'LIST_SPARE = ("LEFT", "", "CONTEXT", ',
        "test_telling.py::test_a_narrow_terminal_shows_what_matters_most_and_wraps_nothing",
    ),
    (
        "the time bar is the first to go",
        'LIST_SPARE = ("", "CONTEXT", "CACHEDIR", ',
        'LIST_SPARE = ("CACHEDIR", "", "CONTEXT", ',
        "test_telling.py::test_a_narrow_terminal_shows_what_matters_most_and_wraps_nothing",
    ),
    (
        "status marks what is overdue",
        '_row("deadline:", ends, colour)',
        '_row("deadline:", ends)',
        "test_telling.py::test_what_needs_the_users_eye_is_coloured_on_a_terminal_alone",
    ),
    (
        "no row wraps",
        "        widths[widths.index(max(widths))] -= 1\n",
        "        break\n",
        "test_telling.py::test_where_even_left_and_state_do_not_fit_the_widest_column_is_cut",
    ),
    (
        "a cluster that can't be read has a row",
        "                found.append((files, None))\n",
        "",
        "test_telling.py::test_list_names_what_can_not_be_read",
    ),
    (
        "a refused start leaves the last expiry",
        "started_at=before.started_at, reaped=before.reaped",
        "started_at=before.started_at",
        "test_telling.py::test_a_start_that_is_refused_forgets_nothing",
    ),
    (
        "a refused resume leaves the last expiry",
        "                _take_back(host, paused)\n",
        "                pass\n",
        "test_telling.py::test_a_resume_that_is_refused_forgets_nothing",
    ),
    (
        "ssh --print runs nothing",
        "    if print_only:\n",
        "    if False:\n",
        "test_telling.py::test_the_ssh_command_can_be_printed",
    ),
    (
        "watch --all says what it watches",
        "            if watched_now != said:\n",
        "            if False:\n",
        "test_telling.py::test_watch_all_says_what_it_watches_whenever_that_changes",
    ),
    (
        "a run that fails is summed up, too",
        '            facts["error"] = str(error)\n            raise\n',
        "            facts = {}\n            raise\n",
        "test_hold.py::test_a_run_that_fails_is_summed_up_too",
    ),
    (
        "a run is waited for where the cluster ran before",
        "    if ran:",
        "    if False:",
        "test_hold.py::test_a_cluster_that_runs_is_waited_for",
    ),
    (
        "a cluster is held before its guest runs",
        "save_state(_with_own_hold(host, fresh))",
        "save_state(fresh)",
        "test_hold.py::test_run_leaves_a_cluster_as_it_found_it",
    ),
    (
        "a warning is of its own end",
        'return Decision("warn", why, End(deadline, BUDGET))',
        'return Decision("warn", why, first)',
        "test_idle.py::test_each_end_is_warned_of_once_where_both_are_near",
    ),
]


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


def staleness(mutant: tuple[str, str, str, str]) -> str:
    """Why a mutant can't be tried; empty where it can."""
    count = PROGRAM.count(mutant[1])
    return "" if count == 1 else f"STALE: its text stands there {count} times"


def judged(mutant: tuple[str, str, str, str]) -> str:
    promise, old, new, tests = mutant
    verdict = staleness(mutant) or tried(PROGRAM.replace(old, new), tests)
    print(f"{promise}: {verdict}", flush=True)
    return verdict.split()[0].rstrip(":")


def main() -> int:
    parser = argparse.ArgumentParser(description="Tries the mutants of ycluster.py.")
    parser.add_argument("-k", metavar="WORD", default="", help="those whose promise or test has it")
    parser.add_argument("-j", metavar="N", type=int, default=2, help="so many at a time (2)")
    parser.add_argument("--stale", action="store_true", help="only tell which are; run no test")
    args = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if args.k in mutant[0] or args.k in mutant[3]]
    if args.stale:
        stale = [(mutant[0], why) for mutant in chosen if (why := staleness(mutant))]
        print("\n".join(f"{promise}: {why}" for promise, why in stale) or "none is stale")
        return 1 if stale else 0
    tests = sorted({test for mutant in chosen for test in mutant[3].split()})
    with ThreadPoolExecutor(args.j) as pool:  # each waits for a process
        for test, verdict in zip(tests, pool.map(partial(tried, PROGRAM), tests)):
            if verdict != "ALIVE":  # then it tells nothing of a mutant
                sys.exit(f"{test}: the program as it is: {verdict}")
        counts = Counter(pool.map(judged, chosen))
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items())) or "none")
    return 0 if counts.keys() == {"killed"} else 1


if __name__ == "__main__":
    sys.exit(main())
