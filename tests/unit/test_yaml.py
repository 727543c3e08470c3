"""The YAML subset: case files in yaml/, and what holds for every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_support import plain

import ycluster

CASES = Path(__file__).parent / "yaml"
VALID = sorted((CASES / "valid").glob("*.yaml"))
INVALID = sorted((CASES / "invalid").glob("*.yaml"))


def read(text: str) -> Any:
    return plain(ycluster.parse_yaml(text, "f"))


def exact(value: Any) -> str:
    """Tells 1, 1.0, true and "1" apart, and finds nan equal to itself; keys keep their order."""
    return json.dumps(value, ensure_ascii=False)


def refusal(text: str) -> str:
    with pytest.raises(ycluster.ConfigError) as caught:
        ycluster.parse_yaml(text, "f")
    assert caught.value.hint, "an error without a remedy"
    return str(caught.value)


# --- Case files ---


def test_there_are_case_files() -> None:
    assert len(VALID) >= 60
    assert len(INVALID) >= 60
    assert {path.stem for path in VALID} == {path.stem for path in CASES.glob("valid/*.json")}
    assert {path.stem for path in INVALID} == {path.stem for path in CASES.glob("invalid/*.txt")}


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_valid_text_has_the_value_of_the_json_beside_it(path: Path) -> None:
    node = ycluster.parse_yaml(path.read_bytes().decode(), path.name)
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert exact(plain(node)) == exact(expected)


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_text_is_refused_in_these_words(path: Path) -> None:
    with pytest.raises(ycluster.ConfigError) as caught:
        ycluster.parse_yaml(path.read_bytes().decode(), path.name)
    assert f"{caught.value}\n{caught.value.hint}\n" == path.with_suffix(".txt").read_text(
        encoding="utf-8"
    )


# --- Nodes ---


def test_nodes_tell_where_value_and_key_stand() -> None:
    root = ycluster.parse_yaml("# c\na: 1\nb c:\n  - 'x'\n  - {d: [e]}\nf:\n", "f")
    assert isinstance(root.value, dict)
    places = {key: (n.line, n.column, n.key_line, n.key_column) for key, n in root.value.items()}
    assert places == {"a": (2, 4, 2, 1), "b c": (4, 3, 3, 1), "f": (6, 3, 6, 1)}
    assert (root.line, root.column, root.key_line, root.key_column) == (2, 1, 0, 0)
    items = root.value["b c"].value
    assert isinstance(items, list)
    assert [(n.line, n.column) for n in items] == [(4, 5), (5, 5)]
    inner = items[1].value
    assert isinstance(inner, dict)
    assert (inner["d"].line, inner["d"].column, inner["d"].key_column) == (5, 9, 6)


@pytest.mark.parametrize(
    ("text", "value", "source"),
    [
        ("8192", 8192, "8192"),
        ("1.10", 1.1, "1.10"),
        ("0x1F", 31, "0x1F"),
        ("1e3", 1000.0, "1e3"),
        ("True", True, "True"),
        ("~", None, "~"),
        ("", None, ""),
        ("a b", "a b", "a b"),
        ('"8192"', "8192", None),
        ("'a'", "a", None),
        ("|-\n  a", "a", None),
    ],
)
def test_a_plain_scalar_keeps_its_text(text: str, value: object, source: str | None) -> None:
    root = ycluster.parse_yaml(f"memory: {text}", "f")
    assert isinstance(root.value, dict)
    assert (root.value["memory"].value, root.value["memory"].source) == (value, source)


def test_nodes_are_frozen() -> None:
    with pytest.raises(AttributeError):
        ycluster.parse_yaml("a", "f").line = 2  # type: ignore[misc]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_and_columns_are_the_same_for_every_line_end(end: str) -> None:
    assert refusal(end.join(["# é", "a: 1", "b: |", "  x", "c: 日本 : @"])).startswith("f:5:7: ")


def test_a_byte_order_mark_has_no_column() -> None:
    assert refusal("\ufeff@").startswith("f:1:1: ")


def test_a_hundred_levels_and_no_more() -> None:
    for opening, closing in (("[", "]"), ("- ", ""), ('{"a": ', "}")):
        read(opening * 100 + "x" + closing * 100)
        assert "more than 100 levels" in refusal(opening * 101 + "x" + closing * 101)


def test_a_text_has_a_quarter_of_a_million_characters_and_no_more() -> None:
    assert read("#" * 256 * 1024) is None
    assert refusal("#" * 256 * 1024 + "#").startswith("f:1:1: more than 262144 characters")


def test_a_key_has_1024_characters_and_no_more() -> None:
    assert read("k" * 1024 + ": 1") == {"k" * 1024: 1}
    assert "more than 1024 characters" in refusal("k" * 1025 + ": 1")


# --- Where YAML 1.1 and YAML 1.2 differ ---


def spellings(*words: str) -> list[str]:
    return [form for word in words for form in (word, word.capitalize(), word.upper())]


@pytest.mark.parametrize("text", [*spellings("yes", "no", "on", "off"), "y", "Y", "n", "N"])
def test_booleans_of_yaml_1_1_are_refused_until_quoted(text: str) -> None:
    assert "differently" in refusal(text)
    assert "differently" in refusal(f"a: [{text}]")
    assert "differently" in refusal(f"{text}: 1")
    assert read(f'"{text}": "{text}"') == {text: text}


def number_like() -> st.SearchStrategy[str]:
    head = st.tuples(
        st.sampled_from(["", "-", "+"]), st.sampled_from(["", "0", "1", "9", "0x", "0o", "0b"])
    )
    return st.tuples(head, st.text("0123456789_:.eEabF+-", min_size=1, max_size=9)).map(
        lambda t: "".join(t[0]) + t[1]
    )


@given(number_like())
def test_whatever_looks_like_a_number_is_a_json_number_a_plain_decimal_a_text_or_refused(
    text: str,
) -> None:
    try:
        value = read(f"[{text}]")[0]
    except ycluster.ConfigError:
        return
    if isinstance(value, float):
        assert value == float(text)
    elif isinstance(value, int):
        assert value == int(text, 0)
    else:
        assert value == text
    assert isinstance(value, str) or "_" not in text


# --- Every text ---


def finite_json() -> st.SearchStrategy[Any]:
    leaves = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | texts()
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner) | st.dictionaries(texts(), inner), max_leaves=20
    )


def texts() -> st.SearchStrategy[str]:
    special = st.text(
        alphabet="ab01 \t\n:-?,[]{}#&*!|>'\"%@`~\\.+eé😀\x00\x85\u2028\ufeff", max_size=12
    )
    words = st.sampled_from(
        [
            "",
            "null",
            "true",
            "yes",
            "012",
            "1e3",
            "- a",
            "a: b",
            "<<",
            "---",
            "...",
            "# c",
        ]
    )
    return special | words | st.text(max_size=12).filter(lambda text: text.isprintable())


@given(finite_json(), st.sampled_from([None, 1, 2, "\t"]), st.booleans())
def test_json_reads_back(data: Any, indent: int | str | None, ascii_only: bool) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=True)
    if not ascii_only and json.dumps(data, ensure_ascii=False).isprintable():
        text = json.dumps(data, indent=indent, ensure_ascii=False)
    assert exact(read(text)) == exact(data)


def emit(data: Any, indent: int, style: int) -> str:
    """Block style YAML for data, to stand behind a key or a dash; `style` varies what means the same."""
    pad = " " * indent
    if isinstance(data, dict) and data:
        step = indent + 1 + style % 3
        lines = [
            f"\n{pad}{json.dumps(key)}:{emit(value, step, style)}" for key, value in data.items()
        ]
        return "".join(lines)
    if isinstance(data, list) and data:
        space = 1 + style % 2
        items = [emit(item, indent + 1 + space, style) for item in data]
        compact = style % 2 == 0
        lines = [
            f"\n{pad}-" + (" " * space + item.lstrip("\n ") if compact else item) for item in items
        ]
        return "".join(lines)
    if isinstance(data, str) and data and data.isprintable() and style % 5 == 0:
        return " '" + data.replace("'", "''") + "'"
    if isinstance(data, str) and style % 7 < 3 and literal_can_hold(data):
        body = "".join(f"\n{pad} {line}" if line else "\n" for line in data[:-1].split("\n"))
        return " |" + body
    return f" {json.dumps(data)}" + " # comment" * (style % 2)


def literal_can_hold(text: str) -> bool:
    """One line end at the end, no blank line first or last, nothing that needs an escape."""
    lines = text[:-1].split("\n")
    held = all(line.isprintable() and line.strip() == line for line in lines)
    return held and text.endswith("\n") and lines[0] != "" and lines[-1] != ""


@given(finite_json(), st.integers(0, 209))
def test_block_style_reads_back(data: Any, style: int) -> None:
    assert exact(read("---" + "\n" * (style % 2) + emit(data, 0, style) + "\n")) == exact(data)


# --- Text of several lines ---

QUOTES = pytest.mark.parametrize("quote", ["", "'", '"'], ids=["plain", "single", "double"])
# What stands before and after a text, and how many spaces its further lines need.
PLACES = [
    ("", "", 0),
    ("--- ", "", 0),
    ("k: ", "", 1),
    ("k:\n  ", "\nl: 1", 1),
    ("k:\n- ", "\n- 1", 1),
    ("- - ", "\n  - 1", 3),
    ("[", ", x]", 0),
    ("{k: ", " , l: 1}", 0),
    ("- {k: [", ", x]}", 1),
]
WORDS = ["a", "b1", "it's", "x:y", "x#y", "-x", "-", "12", "é", "...", "%", "&a", "c.d"]


def first_leaf(value: Any) -> Any:
    """The scalar that stands in a place."""
    while isinstance(value, (dict, list)):
        value = next(iter(value.values())) if isinstance(value, dict) else value[0]
    return value


@QUOTES
@given(
    st.sampled_from(PLACES),
    st.sampled_from(["a", "b1", "x:y"]),
    st.lists(
        st.tuples(
            st.text(" \t", max_size=2), st.integers(1, 4), st.integers(0, 2), st.sampled_from(WORDS)
        )
    ),
)
def test_line_ends_of_a_text_are_folded(
    quote: str, place: tuple[str, str, int], first: str, rest: list[tuple[str, int, int, str]]
) -> None:
    before, after, least = place
    written = expected = first
    for blanks, line_ends, deeper, word in rest:
        # At the start of a line, three points would end the document.
        spaces = max(least + deeper, word == "...")
        written += blanks + " \n" * (line_ends - 1) + "\n" + " " * spaces + word
        expected += "\n" * (line_ends - 1) or " "
        expected += word
    if quote == "'":
        written = written.replace("'", "''")
    assert first_leaf(read(before + quote + written + quote + after)) == expected


@QUOTES
@pytest.mark.parametrize(("before", "after", "least"), PLACES)
def test_a_further_line_of_a_text_is_indented(
    before: str, after: str, least: int, quote: str
) -> None:
    for blank_lines in ("", "\n", "\n  \n"):
        opened = before + quote + "a" + blank_lines + "\n"
        read(opened + " " * least + "b" + quote + after)
        for spaces in range(least):
            refusal(opened + " " * spaces + "b" + quote + after)


@QUOTES
@pytest.mark.parametrize(("before", "after", "least"), PLACES)
def test_a_tab_before_a_further_line_of_a_text_is_refused(
    before: str, after: str, least: int, quote: str
) -> None:
    spaces = " " * least
    for blanks in (spaces + "\t", "\t" + spaces, f"  \t\n{spaces}"):
        text = before + quote + "a\n" + blanks + "b" + quote + after
        assert "a tab in the indentation" in refusal(text)


@QUOTES
@pytest.mark.parametrize(
    ("before", "after"), [("", ": 1"), ("x: 1\n", ": 1"), ("- ", ": 1"), ("{", ": 1}")]
)
def test_a_key_stands_on_one_line(before: str, after: str, quote: str) -> None:
    read(before + quote + "a b" + quote + after)
    refusal(before + quote + "a\n    b" + quote + after)
    refusal(before + quote + "a b" + quote + "\n   " + after)


@pytest.mark.parametrize("marker", ["---", "..."])
@QUOTES
def test_a_marker_at_the_start_of_a_line_ends_every_text(quote: str, marker: str) -> None:
    refusal(f"{quote}a\n{marker}\nb{quote}")
    assert read(f"{quote}a\n {marker}\nb{quote}") == f"a {marker} b"


@given(st.text(), st.sets(st.integers(0, 20)), st.sampled_from(["", "- ", "- - "]))
def test_a_text_reads_back_from_double_quotes_over_several_lines(
    text: str, breaks: set[int], before: str
) -> None:
    written = ""
    for index, char in enumerate(text):
        piece = json.dumps(char)[1:-1]
        if index in breaks:
            # What follows the break may not be a blank: it would be taken for indentation.
            written += "\\\n" + " " * len(before)
            piece = piece.replace(" ", "\\ ")
        written += piece
    assert first_leaf(read(f'{before}"{written}"')) == text


@pytest.mark.parametrize("text", ["12\n 34", "yes\n no", "null\n\n x", "1\n .5", "true\n # c\n"])
def test_the_source_of_a_text_of_several_lines_is_the_folded_text(text: str) -> None:
    node = ycluster.parse_yaml(text, "f")
    assert node.source
    assert "\n " not in node.source
    assert node.value == (node.source if "#" not in text else True)


# --- No text crashes it, hangs it or goes unplaced ---


def value_or_refusal(text: str) -> None:
    """Reading text gives a value, or the error that names a place within it and a remedy; nothing else."""
    try:
        plain(ycluster.parse_yaml(text, "f"))
    except ycluster.ConfigError as error:
        assert error.hint
        line, column = str(error).split(":")[1:3]
        lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        assert 1 <= int(line) <= len(lines)
        assert 1 <= int(column) <= len(lines[int(line) - 1]) + 1


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    value_or_refusal(text)


@settings(max_examples=settings().max_examples * 5)
@given(
    st.lists(
        st.sampled_from(
            [
                *" \n:-?,[]{}#&|>'\"\\\ta1",
                "\n  ",
                "- ",
                "a: ",
                "|\n ",
                "---\n",
                "\n\n",
            ]
        ),
        max_size=25,
    )
)
def test_any_row_of_indicators_is_read_or_refused(pieces: list[str]) -> None:
    value_or_refusal("".join(pieces))


@given(st.sampled_from(VALID), st.data())
def test_a_valid_text_with_a_change_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    text = path.read_bytes().decode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 5)))
    value_or_refusal(
        text[:start] + data.draw(st.text("\t\n :-[]{}#'\"|>\\a1&\0", max_size=3)) + text[end:]
    )


@given(st.sampled_from(VALID), st.data())
def test_a_text_cut_short_is_read_or_refused(path: Path, data: st.DataObject) -> None:
    text = path.read_bytes().decode()
    value_or_refusal(text[: data.draw(st.integers(0, len(text)))])


# Each has been, or could be, quadratic or too deep for someone's reader; a hang is the failure.
HOSTILE = {
    "brackets": "[",
    "braces": "{a: ",
    "dashes": "- ",
    "keys on a line": "a: ",
    "double quotes": '"',
    "single quotes": "'",
    "backslashes": '"\\',
    "one word": "x",
    "words": "x ",
    "spaces": " ",
    "tabs": "\t",
    "blank lines": "\n",
    "comments": "#\n",
    "items": "- a\n",
    "one key again": "a:\n",
    "plain lines": "a\n ",
    "digits": "9",
    "underscores": "1_",
    "base 60": "1:1",
    "markers": "---\n",
    "end markers": "...\n",
    "literals": "- |\n x\n",
    "hashes": "a#",
    "colons": "a:",
    "commas": "[,",
    "blanks and line ends": " \t\n",
    "escaped line ends": "\\\n",
    "escaped blanks": "\\ \n ",
    "texts of two lines": "- 'a\n b'\n",
    "words and comments": "a #\n ",
}


@pytest.mark.parametrize("before", ["", "[", '"', "'", "|\n ", ">\n ", "k:\n  - "], ids=repr)
@pytest.mark.parametrize("piece", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_long_hostile_text_ends(piece: str, before: str) -> None:
    value_or_refusal(before + piece * (50_000 // len(piece)))


# As long as a config may be: what looks at each character again from each one before it takes minutes.
@pytest.mark.parametrize("end", ["", "x", "_", "\n x: "], ids=repr)
@pytest.mark.parametrize("run", list("90 \"'\\:-\n_.#"), ids=repr)
def test_the_longest_run_of_a_character_ends(run: str, end: str) -> None:
    before = "name: "
    value_or_refusal(before + run * (256 * 1024 - len(before) - len(end)) + end)


@pytest.mark.parametrize(
    "text",
    [
        "[" + "1," * 20_000 + "]",
        "\n".join(f"k{i:x}:" for i in range(10_000)),
        ">\n" + " x\n  y\n\n" * 5_000,
    ],
    ids=["items", "keys", "folded lines"],
)
def test_a_long_honest_text_is_read(text: str) -> None:
    assert read(text)
