#!/usr/bin/env python3
"""What reading a config costs, as ratios within one run. Prints; asserts nothing.

python3 benchmarks/config.py
"""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ycluster


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """The best of some runs: the others were disturbed."""
    best = float("inf")
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def refused(text: str) -> str:
    try:
        ycluster.parse_yaml(text, "big.yaml")
    except ycluster.ConfigError as error:
        return str(error).split(": ", 1)[1]
    return "read"


def main() -> None:
    mirrors = {
        f"registry-{i}.example.org": {"endpoint": [f"https://mirror-{i}.example.org"]}
        for i in range(1500)
    }
    data = {"name": "demo", "registries": {"mirrors": mirrors}}
    as_json = json.dumps(data)
    as_yaml = "name: demo\nregistries:\n  mirrors:\n" + "".join(
        f"    {host}:\n      endpoint:\n        - {mirror['endpoint'][0]}\n"
        for host, mirror in mirrors.items()
    )
    base = seconds(lambda: json.loads(as_json))
    path = Path("/config/y-cluster-provision.yaml")
    print(
        f"json.loads of {len(as_json) >> 10} KiB                       1.0   ({base * 1000:.1f} ms)"
    )
    for name, text in (("the same as JSON", as_json), ("the same as YAML", as_yaml)):
        cost = seconds(partial(ycluster.read_config, text, path))
        print(
            f"read_config, {name:<18} {len(text) >> 10:4} KiB {cost / base:8.1f}   ({cost * 1000:.0f} ms)"
        )
    for name, piece in (
        ("brackets", "["),
        ("dashes", "- "),
        ("keys", "a: "),
        ("quotes", '"'),
        ("comments", "# x\n"),
    ):
        text = piece * ((1 << 20) // len(piece))
        cost = seconds(partial(refused, text), 3)
        print(
            f"a hostile 1 MiB of {name:<16} {cost / base:14.1f}   ({cost * 1000:.0f} ms: {refused(text)[:40]})"
        )


if __name__ == "__main__":
    main()
