"""Rules of STYLE.md and DESIGN.md that can be read off the source."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest
from unit_support import PROGRAM

import ycluster

SOURCE = PROGRAM.read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
# fmt: off
SECTIONS = (
    "constants", "errors", "output", "host effects", "durations", "YAML subset", "config and schema", "state sidecar",
    "lifetime decisions", "timers", "gcloud flags", "QMP", "VM process", "QEMU machine", "guest", "k3s", "kubeconfig",
    "disk images", "commands", "CLI",
)
# fmt: on
BANNERS = [
    (number, line)
    for number, line in enumerate(SOURCE.splitlines(), 1)
    if line.startswith("# === ")
]
EFFECTS, CLI = 4, 20
Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
FUNCTIONS = [
    node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
]


def section(node: ast.AST) -> int:
    """The number of the section in which a node stands; 0 above the first."""
    return sum(line <= node.lineno for line, _ in BANNERS)  # type: ignore[attr-defined]


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at module level defines."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    for target in targets:
        yield from (leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name))


def global_names(node: ast.AST, local: frozenset[str]) -> Iterator[ast.Name]:
    """The names that are read below a node and that no enclosing function binds."""
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        inside = list(ast.walk(node))
        local |= {leaf.arg for leaf in inside if isinstance(leaf, ast.arg)}
        local |= {
            leaf.id
            for leaf in inside
            if isinstance(leaf, ast.Name) and isinstance(leaf.ctx, ast.Store)
        }
    if isinstance(node, ast.Name) and node.id not in local:
        yield node
    for child in ast.iter_child_nodes(node):
        yield from global_names(child, local)


GLOBALS = {name: section(node) for node in TREE.body for name in bound(node)}


def test_sections_stand_under_banners_in_the_designed_order() -> None:
    found = [re.fullmatch(r"# === (\d+) (.+?) =+", line) for _, line in BANNERS]
    assert [match and (int(match[1]), match[2]) for match in found] == list(enumerate(SECTIONS, 1))


def test_the_docstring_maps_every_section() -> None:
    lines = re.findall(r"^ +(\d+) (.{18}) \S", ycluster.__doc__ or "", re.MULTILINE)
    assert [(int(number), name.rstrip()) for number, name in lines] == list(enumerate(SECTIONS, 1))


def test_each_section_uses_only_what_stands_above_it() -> None:
    names = list(global_names(TREE, frozenset()))
    ahead = [
        f"line {name.lineno}: {name.id}"
        for name in names
        if GLOBALS.get(name.id, 0) > section(name)
    ]
    assert len(names) > 1000 and not ahead


def test_no_function_is_longer_than_80_lines() -> None:
    lengths = {
        f"{node.name}, line {node.lineno}": (node.end_lineno or 0) - node.lineno + 1
        for node in FUNCTIONS
    }
    assert {name: length for name, length in lengths.items() if length > 80} == {}


def test_python_3_9_can_compile_it() -> None:
    ast.parse(SOURCE, feature_version=(3, 9))


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is of 3.10")
def test_only_the_standard_library_is_imported() -> None:
    imported = {
        alias.name
        for node in ast.walk(TREE)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    imported |= {node.module or "." for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom)}
    assert "json" in imported
    assert {name.split(".")[0] for name in imported} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    "effect, allowed",
    [
        (r"subprocess\..*|os\.(system|popen|exec.*|spawn.*|posix_spawn.*|fork.*)", {EFFECTS}),
        (r"os\.(environb?|getenv|putenv|unsetenv)", {EFFECTS, CLI}),
        (
            r"time\.(time|time_ns|sleep|monotonic|perf_counter)|(datetime|date)\.(now|utcnow|today)",
            {EFFECTS},
        ),
        (r"sys\.exit|os\._exit|exit|quit", {CLI}),
        (r"sys\.(argv|stdout|stderr|stdin)|print|input", {CLI}),
    ],
    ids=["programs", "environment", "clock", "exit", "streams"],
)
def test_effects_stay_in_their_sections(effect: str, allowed: set[int]) -> None:
    nodes = [node for node in ast.walk(TREE) if isinstance(node, (ast.Attribute, ast.Name))]
    uses = {section(node) for node in nodes if re.fullmatch(effect, dotted(node))}
    assert uses, "the pattern finds nothing: it can't fail"
    assert uses <= allowed


@pytest.mark.parametrize(
    "verb", ["lifetime status", "lifetime gcp-flags -c {}", "list", "config check -c {}"]
)
def test_what_a_verb_does_not_need_it_does_not_import(verb: str, tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("lifetime: {maxRun: 8h}\n")
    code = "import sys, ycluster; code = ycluster.main(sys.argv[1:]); print(*sys.modules); sys.exit(code)"
    argv = [sys.executable, "-S", "-c", code, *verb.format(tmp_path).split()]
    env = {"HOME": str(tmp_path), "PYTHONPATH": str(PROGRAM.parent), "PATH": os.environ["PATH"]}
    ran = subprocess.run(argv, env=env, text=True, capture_output=True, cwd="/")
    loaded = set(ran.stdout.splitlines()[-1].split())
    assert ran.returncode in (0, 4) and "ycluster" in loaded, ran.stderr
    heavy = {
        "dataclasses",
        "hashlib",
        "http",
        "inspect",
        "locale",
        "random",
        "secrets",
        "shutil",
        "socket",
        "ssl",
        "subprocess",
    }
    assert not loaded & {*heavy, "traceback", "typing", "urllib.request"}


def test_there_are_no_mutable_globals() -> None:
    mutable = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    loose = [
        name
        for node in TREE.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, mutable)
        for name in bound(node)
        if not name.isupper()
    ]
    assert not loose
    assert not [
        node.lineno for node in ast.walk(TREE) if isinstance(node, (ast.Global, ast.Nonlocal))
    ]


def test_no_global_is_changed_in_place() -> None:
    constants = {name for name in GLOBALS if name.isupper()}
    changers = {
        "append",
        "extend",
        "insert",
        "update",
        "setdefault",
        "pop",
        "popitem",
        "clear",
        "add",
        "remove",
        "sort",
    }
    found = []
    for node in ast.walk(TREE):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in changers
        ):
            found.append(node.func.value)
        elif isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(
            node.ctx, ast.Load
        ):
            found.append(node.value)
    assert found and not {dotted(node) for node in found} & constants


def test_public_functions_that_are_not_obvious_have_docstrings() -> None:
    public = [node for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    bare = [
        f"{node.name}, line {node.lineno}"
        for node in public
        if not node.name.startswith("_")
        and (node.end_lineno or 0) - node.lineno >= 5
        and not ast.get_docstring(node)
    ]
    assert not bare


def test_no_program_is_run_by_a_shell() -> None:
    assert not [
        node for node in ast.walk(TREE) if isinstance(node, ast.keyword) and node.arg == "shell"
    ]


def test_errors_have_the_documented_exit_codes() -> None:
    text = " ".join((ycluster.__doc__ or "").split())
    documented = {
        int(code) for code in re.findall(r"[:,] (\d+) [a-z]", text[text.index("Exit codes:") :])
    }
    errors = [
        value
        for value in vars(ycluster).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    ]
    raised = {error.exit_code for error in errors if hasattr(error, "exit_code")}
    assert documented == raised | {0} == {0, 1, 2, 3, 4, 5, 6, 7, 130}


def test_every_fault_in_the_docs_names_tests_that_are_there() -> None:
    rows = [
        line
        for line in (PROGRAM.parent / "docs" / "faults.md").read_text().splitlines()
        if line.startswith("| ")
    ]
    faults = [row for row in rows if not row.startswith("| Fault |")]
    assert len(faults) > 40
    for row in faults:
        named = re.findall(r"`((?:unit|e2e)/test_\w+\.py)::(\w+)`", row)
        assert named, row
        for module, name in named:
            text = (PROGRAM.parent / "tests" / module).read_text()
            assert re.search(rf"^(def {name}\(|{name} =)", text, re.MULTILINE), f"{module}::{name}"
