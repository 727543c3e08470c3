#!/usr/bin/env python3
"""Record a real run on a terminal as an animated SVG: a cluster suspends itself at its deadline, and goes on.

usage: scripts/record-svg.py IMAGE OUTPUT.svg       IMAGE: what scripts/build-guest-image.sh prints

What is shown is what dist/ycluster wrote to the terminal, colours included. Long waits are shortened to a moment, and of
a line that was redrawn its last state is kept. Nothing is left running; the cluster lives in a temporary HOME.
"""

from __future__ import annotations

import fcntl
import html
import json
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import NamedTuple

COLUMNS, FONT, LINE = 90, 14, 20  # characters; pixels
LONGEST = 1.2  # seconds that a pause is shown for
CONFIG = "name: dev\ncontext: dev\nmemory: 1024\nsshPort: 0\nportForwards: []\nimage: {image}\nk3s: {{install: none}}\nlifetime: {{maxRun: 8h, onExpiry: suspend}}\n"
COMMANDS = (
    "ycluster provision -c dev",
    "ycluster ssh dev -- 'setsid sleep 3600 >/dev/null 2>&1 & pgrep -a sleep'",
    "ycluster list",
    "ycluster lifetime set 1m",
    "ycluster lifetime status",
)
AFTERWARDS = (
    "ycluster list",
    "ycluster start dev",
    "ycluster ssh dev -- pgrep -a sleep",
    "ycluster teardown dev",
)
STYLES = {
    "2": "fill:#8b949e",
    "31": "fill:#ff7b72",
    "33": "fill:#d29922",
    "prompt": "fill:#7ee787",
    "note": "fill:#8b949e;font-style:italic",
}


class Line(NamedTuple):
    at: float  # seconds from the beginning, pauses shortened
    text: str
    style: str = ""


def run(command: str, home: Path) -> list[tuple[float, str]]:
    """What a command writes to a terminal: (seconds since the last of it, text)."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    env = {"HOME": str(home), "PATH": f"{home}/bin:/usr/local/bin:/usr/bin:/bin", "TERM": "xterm"}
    process = subprocess.Popen(
        ["bash", "-c", command], cwd=home, env=env, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    said, before = [], time.monotonic()
    while True:
        try:
            data = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        now = time.monotonic()
        said.append((now - before, data.decode("utf-8", "replace")))
        before = now
    process.wait()
    os.close(leader)
    return said


def lines(command: str, said: list[tuple[float, str]], began: float) -> list[Line]:
    """The lines of a command: its own, then each at the moment when it was complete."""
    found, at, rest, waited = [Line(began, f"$ {command}", "prompt")], began + 0.6, "", 0.0
    for pause, text in said:
        waited += pause
        *complete, rest = (rest + text).replace("\r\n", "\n").split("\n")
        for line in complete:
            at, waited = at + min(waited, LONGEST), 0.0
            last = re.split(r"\r(?:\x1b\[K)?", line)[-1]  # what a redrawn line came to be
            style = re.match(r"\x1b\[(\d+)m", last)
            plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", last)
            pieces = [
                plain[start : start + COLUMNS] for start in range(0, len(plain) or 1, COLUMNS)
            ]
            found.extend(Line(at, piece, style[1] if style else "") for piece in pieces)
    return found


def svg(shown: list[Line]) -> str:
    """The lines below each other, each visible from its moment on."""
    width, height = COLUMNS * FONT * 0.61 + 40, len(shown) * LINE + 50
    rules = "".join(f".s{name}{{{style}}}" for name, style in STYLES.items())
    texts = "\n".join(
        f'<text x="20" y="{34 + number * LINE}" class="s{line.style}" style="animation-delay:{line.at:.1f}s">{html.escape(line.text)}</text>'
        for number, line in enumerate(shown)
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">
<title>ycluster: a cluster that expires on its own</title>
<style>
text{{font:{FONT}px ui-monospace,Menlo,Consolas,monospace;white-space:pre;fill:#e6edf3;opacity:0;animation:show .1s linear forwards}}
@keyframes show{{to{{opacity:1}}}}
@media (prefers-reduced-motion){{text{{opacity:1;animation:none}}}}
{rules}
</style>
<rect width="100%" height="100%" rx="8" fill="#0d1117"/>
{texts}
</svg>
"""


def main() -> int:
    image, output = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    program = Path(__file__).resolve().parents[1] / "dist" / "ycluster"
    shown: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "bin").mkdir()
        (home / "bin" / "ycluster").symlink_to(program)
        (home / "dev").mkdir()
        (home / "dev" / "y-cluster-provision.yaml").write_text(CONFIG.format(image=image))

        def show(command: str) -> None:
            shown.extend(lines(command, run(command, home), shown[-1].at + 1.5 if shown else 0.5))

        try:
            for command in COMMANDS:
                show(command)
            shown.append(
                Line(
                    shown[-1].at + 1.5,
                    "# nobody comes back, and a minute later:",
                    "note",
                )
            )
            while True:
                asked = "".join(
                    text for _, text in run("ycluster status -o json 2>/dev/null", home)
                )
                if json.loads(asked)["reaped"]:
                    break
                time.sleep(2)
            for command in AFTERWARDS:
                show(command)
        finally:
            run("ycluster teardown dev", home)
    output.write_text(svg(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
