"""The generated schemas: fresh, complete, and of one mind with the reader."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit_support import PROGRAM, Cli

import ycluster
from ycluster import kind_of, schema_for

SCHEMAS = ("common", "docker", "multipass", "qemu")


def entries(schema: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every described key of a schema, dotted, with its own schema."""
    for name, child in schema["properties"].items():
        if "description" in child:
            yield prefix + name, child
            if child.get("type") == "object" and "properties" in child:
                yield from entries(child, f"{prefix}{name}.")


def fits(schema: Any, value: Any) -> bool:
    """JSON Schema, as far as these schemas go."""
    if "anyOf" in schema:
        return any(fits(choice, value) for choice in schema["anyOf"])
    types: dict[str, Any] = {
        "string": str,
        "integer": int,
        "object": dict,
        "array": list,
        "boolean": bool,
        "null": type(None),
    }
    if not isinstance(value, types[schema["type"]]) or value not in schema.get("enum", [value]):
        return False
    if value is None:
        return True
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, list):
        return all(fits(schema["items"], item) for item in value)
    known = schema.get("properties", {})
    rest = schema["additionalProperties"]
    return all(name in value for name in schema.get("required", [])) and all(
        fits(known[name], item) if name in known else rest is not False and fits(rest, item)
        for name, item in value.items()
    )


@pytest.mark.parametrize("which", SCHEMAS)
def test_the_schema_in_the_repository_is_fresh(which: str) -> None:
    """`ycluster schema --write schemas` mends it."""
    path = PROGRAM.parent / "schemas" / f"{which}.schema.json"
    assert path.read_text(encoding="utf-8") == ycluster.to_json(schema_for(which)) + "\n"


def test_schema_write_writes_them_all(cli: Cli, tmp_path: Path) -> None:
    ran = cli("schema", "--write", tmp_path / "out")
    assert (ran.code, ran.out) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"{name}.schema.json" for name in SCHEMAS
    ]
    for which in SCHEMAS:
        path = tmp_path / "out" / f"{which}.schema.json"
        assert (
            json.loads(path.read_text()) == schema_for(which)
            and path.stat().st_mode & 0o777 == 0o644
        )


@pytest.mark.parametrize("which", SCHEMAS)
def test_a_schema_is_of_draft_2020_12_and_refuses_unknown_keys(which: str) -> None:
    schema = schema_for(which)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    objects = [schema, *(child for _, child in entries(schema) if "properties" in child)]
    assert len(objects) >= 6 and all(part["additionalProperties"] is False for part in objects)


@pytest.mark.parametrize("which", SCHEMAS)
def test_every_key_has_its_meaning_and_a_default_that_fits(which: str) -> None:
    for name, schema in entries(schema_for(which)):
        assert schema["description"].endswith("."), name
        assert fits(schema, schema["default"]), name


@pytest.mark.parametrize("provider", ycluster.PROVIDERS)
def test_the_default_of_every_key_is_what_an_empty_config_gives(provider: str) -> None:
    config = ycluster.read_config(f"provider: {provider}\n", Path("/c/y-cluster-provision.yaml"))
    shown = ycluster.show_config(config)
    assert fits(schema_for(provider), shown)
    for name, schema in entries(schema_for(provider)):
        value: Any = shown
        for part in name.split("."):
            value = value[part]
        assert value == schema["default"] or name == "imageSha256", (
            name
        )  # the default image's digest comes with it


def test_the_common_keys_are_in_every_providers_schema() -> None:
    common = {name for name, _ in entries(schema_for("common"))}
    for provider in ycluster.PROVIDERS:
        assert common <= {name for name, _ in entries(schema_for(provider))}
    assert {"diskSize", "sshPort", "dataDisk"} <= set(kind_of("qemu").schema["properties"]) - common


@pytest.mark.parametrize(
    "config, ok",
    [
        ({"name": "demo"}, True), ({"name": "Demo"}, False), ({"name": "a" * 64}, False), ({"name": "../x"}, False),
        ({"diskSize": "20G"}, True), ({"diskSize": "20GB"}, False), ({"memory": 4096}, True), ({"memory": "4096"}, True),
        ({"memory": 1.5}, False), ({"memory": 1}, False), ({"imageSha256": "a" * 64}, True), ({"imageSha256": "a" * 63}, False),
        ({"sshUser": "a b"}, False), ({"context": "a\nb"}, False), ({"accel": "fast"}, False), ({"nope": 1}, False),
        ({"k3s": {"install": "none", "version": "v1.35.6+k3s1"}}, True), ({"k3s": {"version": "latest"}}, False),
        ({"portForwards": [{"host": 6443, "guest": "6443"}]}, True), ({"portForwards": [{"host": 6443}]}, False),
        ({"lifetime": {"maxRun": "8h", "onExpiry": "pause"}}, True), ({"lifetime": {"onExpiry": "explode"}}, False),
        ({"lifetime": {"maxRun": "8hours"}}, False), ({"lifetime": {"maxRun": "-8h"}}, False), ({"lifetime": {"maxRun": "0"}}, True),
        ({"gateway": {"skip": True}}, True), ({"gateway": {"skip": "yes"}}, False), ({"network": {"bindAddress": "0.0.0.0"}}, True),
        ({"network": {"bindAddress": "256.0.0.1"}}, False), ({"network": {"bindAddress": "1.2.3"}}, False),
        ({"registries": {"mirrors": {"a": {"endpoint": ["http://b"]}}}}, True), ({"registries": {"mirrors": {"a": []}}}, False),
        ({"registries": {"mirrors": {"a": None}}}, True), ({"registries": {"configs": {"a": {"auth": {"password": None}}}}}, True),
        ({"registries": {"configs": {"a": {"auth": {"identity_token": "t"}}}}}, True), ({"storage": {"reclaimPolicy": None}}, True),
        ({"registries": {"configs": {"a": {"auth": {"password": "${A:-b}"}}}}}, True),
    ],
)  # fmt: skip
def test_schema_and_reader_agree(config: dict[str, Any], ok: bool) -> None:
    text = json.dumps({"image": "/i", **config})
    assert fits(schema_for("qemu"), json.loads(text)) is ok
    try:
        ycluster.read_config(text, Path("/c/c.json"))
    except ycluster.ConfigError:
        assert not ok
    else:
        assert ok
