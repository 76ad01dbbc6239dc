"""One TOML table and the frozen dataclass that it fills."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    ConfigT = TypeVar("ConfigT", bound=DataclassInstance)

_TYPES = {
    bool: "true or false",
    dict: "a table",
    int: "a whole number",
    str: "a string",
    tuple: "a list of strings",
}


def key_faults(config: type[DataclassInstance], table: Mapping[str, object]) -> list[str]:
    """Return every key that the dataclass lacks or whose value has the wrong type."""
    defaults = config()
    known = {item.name: type(getattr(defaults, item.name)) for item in fields(config)}
    faults = []
    for key, value in table.items():
        if key not in known:
            faults.append(f"{key}: unknown key; known are {', '.join(sorted(known))}")
        elif fault := type_fault(value, known[key]):
            faults.append(f"{key}: {fault}")
    return faults


def fill(config: type[ConfigT], table: Mapping[str, object]) -> ConfigT:
    """Return the dataclass with the table's values; the table has no `key_faults`."""
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    return config(**values)


def type_fault(value: object, expected: type) -> str:
    """Return what is wrong with a TOML value, "" if nothing is; `tuple` is a list of strings.

    TOML's booleans are no numbers, though Python's are.
    """
    if expected is tuple:
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
    else:
        fits = type(value) is expected
    return "" if fits else f"expected {_TYPES[expected]}, got {value!r}"
