"""Section 1: `Record`, which every value here is."""

from __future__ import annotations

from typing import Any

import pytest

from ycluster import Kind, PortForward, QemuConfig, Record, key, keys_of, replace


class Point(Record):
    x: int
    y: int = 2
    not_a_field = 3


class Deep(Point):
    z: int = key(Kind(int), "Depth.", 4)
    x: int = 1  # has a default here, and stays where it was


class Other(Record):
    x: int
    y: int = 2


class Heir(Point):
    """The same fields, and another class."""


class Wanted(Record):
    name: str = key(Kind(str), "A key without a default.")


def test_fields_come_in_the_order_of_their_declaration_and_an_heir_may_give_another_default() -> (
    None
):
    assert [*vars(Point(1))] == ["x", "y"] and [*vars(Deep(z=9, y=8))] == ["x", "y", "z"]
    assert vars(Deep()) == {"x": 1, "y": 2, "z": 4} and vars(Deep(7, z=5)) == {
        "x": 7,
        "y": 2,
        "z": 5,
    }
    assert repr(Deep(7)) == "Deep(x=7, y=2, z=4)"
    assert [*keys_of(Deep)] == ["z"] and [*QemuConfig.fields][:2] == ["provider", "name"]


@pytest.mark.parametrize(
    "cls, values, named",
    [
        (Point, (), {}), (Point, (1, 2, 3), {}), (Point, (1,), {"z": 1}), (Point, (1,), {"x": 5}), (Point, (1, 2), {"y": 2}),
        (Deep, (1, 2, 3, 4), {}), (Wanted, (), {}), (PortForward, (), {"host": 1}),
    ],
    ids=[
        "one is missing", "too many", "unknown", "one is given twice", "one is given twice alike",
        "too many of an heir", "a key is missing", "a key of the config is",
    ],
)  # fmt: skip
def test_what_is_missing_unknown_or_given_twice_is_refused(
    cls: Any, values: tuple[int, ...], named: dict[str, int]
) -> None:
    with pytest.raises(TypeError, match=f"{cls.__name__} has the fields "):
        cls(*values, **named)


def test_a_record_does_not_change_and_replace_makes_another() -> None:
    one = Point(1)
    with pytest.raises(AttributeError, match="does not change"):
        one.x = 5  # type: ignore[misc]
    with pytest.raises(AttributeError, match="does not change"):
        del one.x
    assert one == Point(1)
    assert (
        replace(one, y=5) == Point(1, 5) != one == Point(1) and type(replace(Deep(), z=0)) is Deep
    )
    with pytest.raises(TypeError):
        replace(one, z=5)


def test_equal_records_are_one_in_a_set() -> None:
    assert {Point(1), Point(x=1), Point(1, 3)} == {Point(1), Point(y=3, x=1)} and len(
        {
            Point(1),
            Point(x=1),
        }
    ) == 1


@pytest.mark.parametrize("other", [Other(1), Heir(1)], ids=["another class", "an heir"])
def test_records_of_two_classes_are_never_equal(other: Record) -> None:
    one = Point(1)
    assert vars(one) == vars(other)
    assert not one == other and not other == one and one != other and other != one  # noqa: SIM201
    assert hash(one) != hash(other) and len({one, other}) == 2 and one not in [other]
    assert one != vars(one) and vars(one) != one
