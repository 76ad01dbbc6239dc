"""The filter language: the table of its rules, and a generated comparison with a small oracle."""

from __future__ import annotations

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.filters import FieldPath, label_field, parse
from lamina.errors import InvalidArgument

OBJECT = {
    "name": "a1",
    "parent": "",
    "labels.foo": "true",
    "labels.containerd.io/gc.root": "2026",
    "labels.odd, key": "va lue",
}


def fields(path: FieldPath) -> str | None:
    if path[0] == "labels":
        labels = {key[7:]: value for key, value in OBJECT.items() if key.startswith("labels.")}
        return label_field(labels, path[1:])
    return OBJECT.get(".".join(path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "parent",
        'parent==""',
        "name==a1",
        "name == a1",
        " name==a1 , labels.foo",
        "name!=a2",
        "absent!=1",
        'name=="a1"',
        'name=="\\x61\\u0031"',
        'name=="\\141\\U00000031"',
        'labels."foo"==true',
        'labels."containerd.io/gc.root"',
        'labels.containerd."io/gc".root==2026',
        'labels."odd, key"=="va lue"',
        "name~=a",
        "name~=^a[0-9]$",
        "name~=/^a1$/",
        "name~=|1|",
        'name~="^a\\\\d$"',
        "name~=/^a\\\\d$/",
        'absent~="^$"',
        "labels.foo==true,name==a1,parent",
    ],
)
def test_matches(text: str) -> None:
    assert parse([text])(fields)


@pytest.mark.parametrize(
    "text",
    [
        "absent",
        'absent==""',
        "name!=a1",
        "name==A1",
        "labels.bar",
        "labels",
        "name~=^1",
        "name==a1,absent",
        "name==x:y/z-w@v",
    ],
)
def test_does_not_match(text: str) -> None:
    assert not parse([text])(fields)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("name==", 7),
        ("name=a1", 5),
        ("name===a1", 5),
        ("name=~a1", 5),
        ("name a1", 6),
        ("name==a b", 9),
        ("name==a1,", 10),
        (",name", 1),
        (".name", 1),
        ("name.", 6),
        ("name..x", 6),
        ("'name'==a1", 1),
        ("na-me==a1", 3),
        ("name==.a", 7),
        ("name==/a/", 7),
        ("name!=|a|", 7),
        ("|name|==a1", 1),
        ('name=="a1', 7),
        ('name=="a\n1"', 7),
        (r'name=="\d"', 9),
        (r'name=="\400"', 9),
        (r'name=="\ud800"', 9),
        ("name~=/a", 7),
        ("==a1", 1),
        ("näme", 2),
    ],
)
def test_faults_name_their_position(text: str, position: int) -> None:
    with pytest.raises(InvalidArgument, match=rf"at character {position},"):
        parse([text])


def test_filters_are_alternatives() -> None:
    assert parse([])(fields)
    assert parse(["name==x", "name==a1"])(fields)
    assert parse(["name==x", ""])(fields)
    assert not parse(["name==x", "absent"])(fields)


def test_one_bad_filter_spoils_all() -> None:
    with pytest.raises(InvalidArgument):
        parse(["", "name=="])


def test_pattern_that_does_not_compile_matches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not parse(['name~="("'])(fields)
    assert "does not compile" in caplog.text


VALUES = st.sampled_from(["", "a", "b", "a.b", "x y", 'q"q', "\\", "a,b"])
KEYS = st.sampled_from(["one", "two", "three"])


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@given(
    st.dictionaries(KEYS, VALUES),
    st.lists(
        st.lists(st.tuples(KEYS, st.sampled_from(["", "==", "!=", "~="]), VALUES), min_size=1)
    ),
)
def test_oracle(present: dict[str, str], groups: list[list[tuple[str, str, str]]]) -> None:
    def holds(key: str, operator: str, value: str) -> bool:
        found = present.get(key, "")
        return {
            "": key in present,
            "==": key in present and found == value,
            "!=": found != value,
            "~=": value in found,
        }[operator]

    texts = []
    for group in groups:
        selectors = []
        for key, operator, value in group:
            wanted = re.escape(value) if operator == "~=" else value
            selectors.append(key + (operator + quoted(wanted) if operator else ""))
        texts.append(",".join(selectors))
    expected = not groups or any(all(holds(*s) for s in group) for group in groups)
    assert parse(texts)(lambda path: present.get(".".join(path))) == expected
