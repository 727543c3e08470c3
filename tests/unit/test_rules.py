"""Rules of STYLE.md and DESIGN.md that can be read off the source."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest
from unit_support import PROGRAM

import ycluster

SOURCE = PROGRAM.read_text(encoding="utf-8")
TREE = ast.parse(SOURCE)
NODES = list(ast.walk(TREE))  # once, as a walk takes longer than what is looked for
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
FUNCTIONS = [node for node in NODES if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


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


def test_the_parts_of_the_commands_are_mapped() -> None:
    """Each heading, in its order; and what is named as the place to begin is there."""
    begin = next(line for line, text in BANNERS if " 19 commands " in text)
    lines = SOURCE.splitlines()[begin:]
    stop = lines.index("")
    parts = [line[4:30].strip() for line in lines[:stop] if line.startswith("#   ")]
    headings = [line[6:] for line in lines if line.startswith("# --- ")]
    alone = [part for part in parts if not part.startswith("Compute Engine")]
    assert len(alone) > 10
    for part, heading in zip(alone, headings):
        assert heading.startswith(part), (part, heading)
    named = {name for line in lines[:stop] for name in re.findall(r"`(\w+)`", line)}
    assert not {name for name in named if name not in GLOBALS}


def test_each_section_uses_only_what_stands_above_it() -> None:
    names = list(global_names(TREE, frozenset()))
    ahead = [
        f"line {name.lineno}: {name.id}"
        for name in names
        if GLOBALS.get(name.id, 0) > section(name)
    ]
    assert len(names) > 1000 and not ahead


# --- how much a reader has to hold at once

# Functions that may be longer than 40 lines, each with the reason. There is none.
LONGER: dict[str, str] = {}
BRANCHES = (
    ast.If,
    ast.For,
    ast.While,
    ast.ExceptHandler,
    ast.Assert,
    ast.IfExp,
    ast.comprehension,
    ast.Lambda,
)
BLOCKS = (ast.If, ast.For, ast.While, ast.Try, ast.With)


def named(node: Function) -> str:
    return f"{node.name}, line {node.lineno}"


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What is below a function, without what is in functions inside of it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from own_nodes(child)


def complexity(function: Function) -> int:
    """Cyclomatic complexity, as radon counts it: each `and` and each `if` of a comprehension, too."""
    found = 1
    for node in own_nodes(function):
        found += isinstance(node, BRANCHES)
        found += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
        found += len(node.ifs) if isinstance(node, ast.comprehension) else 0
    return found


def depth(node: ast.AST) -> int:
    """How deep blocks are nested below a node; an `elif` is not deeper than its `if`."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, depth(child) + (isinstance(child, BLOCKS) and not is_elif))
    return deepest


def code_lines() -> int:
    """Lines with code on them: no comment, no docstring, no blank line."""
    skipped = {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(SOURCE).readline):
        if token.type not in skipped:
            found.update(range(token.start[0], token.end[0] + 1))
    for node in NODES:
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            found.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(found)


def test_no_function_is_longer_than_40_lines() -> None:
    lengths = {
        named(node): (node.end_lineno or 0) - node.lineno + 1
        for node in FUNCTIONS
        if node.name not in LONGER
    }
    assert {name: length for name, length in lengths.items() if length > 40} == {}


def test_no_function_has_a_complexity_over_12() -> None:
    found = {named(node): complexity(node) for node in FUNCTIONS}
    assert (
        max(found.values()) > 8
        and {name: count for name, count in found.items() if count > 12} == {}
    )


def test_blocks_are_nested_three_deep_at_most() -> None:
    found = {named(node): depth(node) for node in FUNCTIONS}
    assert max(found.values()) == 3, {name: count for name, count in found.items() if count > 3}


def test_a_line_holds_little() -> None:
    """The models that STYLE.md names have 6 to 9 nodes of the syntax tree on a line of code."""
    assert len(NODES) / code_lines() <= 9


def test_no_line_is_wider_than_100_columns() -> None:
    assert [number for number, line in enumerate(SOURCE.splitlines(), 1) if len(line) > 100] == []


def test_only_tables_of_arguments_are_left_unformatted() -> None:
    lines = [line for line in SOURCE.splitlines() if "# fmt:" in line]
    assert len(lines) > 3 and {line.strip() for line in lines} == {"]  # fmt: skip"}


def test_a_failure_is_suppressed_only_with_the_reason() -> None:
    """In a comment on the line, above it, or as the first line inside."""
    lines = ["", *SOURCE.splitlines(), ""]
    found = [number for number, line in enumerate(lines) if "contextlib.suppress(" in line]
    bare = [
        number
        for number in found
        if not any("#" in lines[near] for near in (number - 1, number, number + 1))
    ]
    assert found and not bare


def test_each_section_begins_with_what_it_owns() -> None:
    lines = SOURCE.splitlines()
    assert [line for number, line in BANNERS if not lines[number].startswith("# ")] == []


def test_python_3_9_can_compile_it() -> None:
    ast.parse(SOURCE, feature_version=(3, 9))


@pytest.mark.skipif(sys.version_info < (3, 10), reason="sys.stdlib_module_names is of 3.10")
def test_only_the_standard_library_is_imported() -> None:
    imported = {
        alias.name for node in NODES if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {node.module or "." for node in NODES if isinstance(node, ast.ImportFrom)}
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
        (r"os\.path\.expanduser|Path\.home", set()),  # HOME is Host's to read
        (r"sys\.exit|os\._exit|exit|quit", {CLI}),
        (r"sys\.(argv|stdout|stderr|stdin)|print|input", {CLI}),
    ],
    ids=["programs", "environment", "clock", "home", "exit", "streams"],
)
def test_effects_stay_in_their_sections(effect: str, allowed: set[int]) -> None:
    nodes = [node for node in NODES if isinstance(node, (ast.Attribute, ast.Name))]
    uses = {section(node) for node in nodes if re.fullmatch(effect, dotted(node))}
    assert uses or not allowed, "the pattern finds nothing: it can't fail"
    assert uses <= allowed


def test_a_wait_for_nothing_is_no_sleep() -> None:
    """`select` with no descriptors sleeps, where no test can move the clock."""
    calls = [
        node
        for node in NODES
        if isinstance(node, ast.Call) and dotted(node.func) == "select.select"
    ]
    empty = [
        call
        for call in calls
        if all(isinstance(arg, ast.List) and not arg.elts for arg in call.args[:3])
    ]
    assert calls and not empty


def test_no_other_module_is_changed() -> None:
    modules = {
        alias.asname or alias.name
        for node in NODES
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    changed = []
    for node in NODES:
        if isinstance(node, (ast.Subscript, ast.Attribute)) and not isinstance(node.ctx, ast.Load):
            inner = node.value
            if isinstance(inner, ast.Call) and dotted(inner.func) == "vars" and inner.args:
                inner = inner.args[0]
            changed += [node.lineno] if dotted(inner).split(".")[0] in modules else []
    assert not changed


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
        "argparse",
        "dataclasses",
        "hashlib",
        "http",
        "inspect",
        "random",
        "secrets",
        "shutil",
        "socket",
        "ssl",
        "subprocess",
    }
    assert not loaded & {*heavy, "traceback", "typing", "urllib.request"}


def test_an_advised_command_names_the_cluster_that_it_is_about() -> None:
    """A bare one acts on another cluster where there are several."""
    texts = [ast.unparse(node) for node in NODES if isinstance(node, (ast.JoinedStr, ast.Constant))]
    one = (ycluster.ONE, ycluster.ONE_BY_OPTION, ycluster.ONE_OR_CONFIG)
    verbs = "|".join(
        path
        for path in ycluster.VERBS
        if any(item in one for item in ycluster.declared(path).arguments)
    )
    advised = {
        found
        for text in texts
        for found in re.findall(rf"`(?:\w+=\w+ )?ycluster (?:{verbs})(?: [^`]*)?`", text)
        if not text.startswith("'# Written by ")  # into a disk
    }
    names_one = r" (--name|-c|--state|--context|\{|'?\+|dev|NAME)"
    assert len(advised) > 20
    assert {text for text in advised if not re.search(names_one, text)} == set()


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
    assert not [node.lineno for node in NODES if isinstance(node, (ast.Global, ast.Nonlocal))]


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
    for node in NODES:
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
    assert not [node for node in NODES if isinstance(node, ast.keyword) and node.arg == "shell"]


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
