#!/usr/bin/env python3
"""Write what can be derived from the program: the tables of docs/config.md, or a manual page.

usage: scripts/reference.py config        the tables, to stdout, and into docs/config.md
       scripts/reference.py man           a page for man(1), to stdout: ... >ycluster.1
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ycluster  # noqa: E402  # of this checkout

PAGE = ROOT / "docs" / "config.md"
BEGIN = "<!-- from the keys, by scripts/reference.py config -->\n"
END = "<!-- end -->\n"
# What y-cluster knows too: its pkg/provision/config at 6e7b713, and the tap networks of later ones.
SHARED = set(
    """
    provider name context memory cpus k3s k3s.version k3s.install portForwards portForwards.guest
    portForwards.host registries gateway storage lifetime lifetime.maxRun lifetime.onExpiry diskSize
    sshPort cacheDir dataDisk dataDiskSize network network.mode network.ifname network.guestAddress
    network.gateway network.dns
    """.split()
)


# --- the config
def value_of(schema: dict[str, Any]) -> str:
    """What may stand there."""
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    numbers = [choice for choice in schema.get("anyOf", ()) if choice.get("type") == "integer"]
    if numbers:
        return f"{numbers[0]['minimum']} to {numbers[0]['maximum']}"
    if "ns|us" in schema.get("pattern", ""):
        return "duration"
    kinds = {"boolean": "`true`, `false`", "array": "list", "object": "section"}
    return kinds.get(schema.get("type", ""), "text")


def default_of(schema: dict[str, Any]) -> str:
    """What a key has where it is left out; nothing for a section, which has its own keys."""
    default = schema.get("default", "")
    if isinstance(default, (dict, list)):
        if not default or "properties" in schema:
            return ""
        return ", ".join(f"{entry['host']}:{entry['guest']}" for entry in default)
    return f"`{default}`" if default not in ("", None) else ""


def rows(schema: dict[str, Any], section: str = "") -> Iterator[str]:
    """A table of the keys of a section."""
    yield "| Key | Value | Default | Meaning |"
    yield "|---|---|---|---|"
    required = schema.get("required", ())
    for name, key in schema["properties"].items():
        default = "required" if name in required else default_of(key)
        meaning = key.get("description", "").replace("|", "\\|")
        own = "" if section + name in SHARED else " °"
        yield f"| `{name}`{own} | {value_of(key)} | {default} | {meaning} |"


def config_tables() -> str:
    """The keys of a config for QEMU: those of the file itself, then those of each section."""
    schema = ycluster.schema_for("qemu")
    # A file of qemu's may also be read where another provider is named.
    schema["properties"]["provider"] = ycluster.schema_for("common")["properties"]["provider"]
    lines = ["## Top level", "", *rows(schema), ""]
    for name, key in schema["properties"].items():
        inner = key.get("items", key)
        keys = inner.get("properties", {}).values()
        if any("description" in sub for sub in keys):  # not those of k3s's own files
            lines += [f"## {name}", "", *rows(inner, f"{name}."), ""]
    return "\n".join(lines)


def with_tables(page: str) -> str:
    """The page with its tables as they are now."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{config_tables()}\n{END}{rest.partition(END)[2]}"


# --- the manual page
def roff(text: str) -> str:
    """Text that roff shows as it is."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def option_lines(arguments: list[ycluster.Argument]) -> Iterator[str]:
    """Arguments, each with what it means."""
    for item in arguments:
        if item.is_hidden:
            continue
        value = ""
        if item.takes_value or not item.is_option:
            shown = item.options.get("metavar") or "{" + ",".join(item.choices) + "}"
            value = shown if shown != "{}" else item.dest.upper()
        words = ", ".join(item.names) if item.is_option else ""
        yield ".TP"
        yield f".B {roff(f'{words} {value}'.strip())}"
        yield roff(str(item.options.get("help") or "").replace("%%", "%"))


def man_page() -> str:
    """The page, in the macros of man(7)."""
    doc = (ycluster.__doc__ or "").split("\n\n")
    lines = [
        f'.TH YCLUSTER 1 "" "ycluster {ycluster.VERSION}" "User Commands"',
        ".SH NAME",
        "ycluster \\- dev clusters that expire on their own",
        ".SH SYNOPSIS",
        ".B ycluster",
        ".I VERB\n[\\fIoptions\\fR]",
        ".SH DESCRIPTION",
        roff(doc[1]),
        ".SH OPTIONS",
        *option_lines([ycluster.COMMON]),
        ".SH VERBS",
    ]
    for path in ycluster.VERBS:
        verb = ycluster.declared(path)
        lines += [f'.SS "{roff(path)}"', roff(verb.help[0].upper() + verb.help[1:] + ".")]
        lines += option_lines(ycluster.arguments_of(path)[1:])
        lines += [".PP", "Example:", f".B {roff(verb.example)}"]
    lines += [".SH EXIT STATUS"]
    for code, meaning in ycluster.EXIT_CODES.items():
        lines += [".TP", f".B {code}", roff(meaning)]
    lines += [".SH SEE ALSO", ".BR qemu-system-x86_64 (1),", ".BR kubectl (1)"]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Write what is asked for; returns the exit code."""
    if argv == ["man"]:
        print(man_page(), end="")
    elif argv == ["config"]:
        PAGE.write_text(with_tables(PAGE.read_text()))
        print(config_tables())
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
