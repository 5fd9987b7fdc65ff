from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.sip.headers import Headers, canonical_name, field_value
from sipush.sip.message import parse_datagram
from tests.sip.messages import request_bytes


def headers(*lines: str) -> Headers:
    return parse_datagram(request_bytes(extra=lines)).headers


def test_compact_and_long_names_are_one_name() -> None:
    assert canonical_name("i") == canonical_name("CALL-id") == "call-id"
    assert headers("m: <sip:a@b>").get("contact") == "<sip:a@b>"


def test_folded_lines_are_one_value() -> None:
    assert field_value("Subject: a\r\n\tb\r\n  c ") == "a b c"


def test_values_are_split_at_commas_over_all_lines() -> None:
    route = headers("Route: <sip:a;lr>, <sip:b>", "Route: <sip:c>")
    assert route.values("route") == ["<sip:a;lr>", "<sip:b>", "<sip:c>"]


def test_the_first_value_is_taken_off_and_the_others_stay() -> None:
    route = headers("Route: <sip:a>, <sip:b>", "Route: <sip:c>")
    taken = [route.pop_first_value("route", "Route") for _ in range(4)]
    assert taken == ["<sip:a>", "<sip:b>", "<sip:c>", None]


def test_a_prepended_line_stands_before_its_kind() -> None:
    fields = headers()
    fields.prepend("Via", "SIP/2.0/TCP x;branch=z9hG4bK9")
    assert fields.fields[0] == ("via", "Via: SIP/2.0/TCP x;branch=z9hG4bK9")
    assert len(fields.lines("via")) == 2


def test_set_replaces_all_lines_where_the_first_stood() -> None:
    fields = Headers([("x-a", "X-A: 1"), ("x-b", "X-B: 1"), ("x-a", "X-A: 2")])
    fields.set("X-A", "3")
    fields.set("X-C", "4")
    assert [line for _, line in fields] == ["X-A: 3", "X-B: 1", "X-C: 4"]
    fields.remove("x-a")
    assert "x-a" not in fields


def test_a_copy_has_lines_of_its_own() -> None:
    original = Headers([("a", "A: 1")])
    copied = original.copy()
    copied.append("B", "2")
    assert "b" not in original


EDITS: list[Callable[[Headers, str], object]] = [
    lambda fields, name: fields.append(name, "1"),
    lambda fields, name: fields.prepend(name, "2, 3"),
    lambda fields, name: fields.set(name, "4"),
    lambda fields, name: fields.remove(name),
    lambda fields, name: fields.extend([(name, f"{name}: 5"), (name, f"{name}: 6")]),
    lambda fields, name: fields.pop_first_value(name, name),
    lambda fields, name: name in fields and fields.replace_first_line(name, f"{name}: 7"),
]
NAMES = ["via", "route", "x-a"]


@given(st.lists(st.tuples(st.sampled_from(EDITS), st.sampled_from(NAMES), st.booleans())))
def test_whatever_is_edited_a_name_leads_to_its_first_line(
    edits: list[tuple[Callable[[Headers, str], object], str, bool]],
) -> None:
    fields = Headers()
    for edit, edited, is_asked in edits:
        edit(fields, edited)
        if is_asked:  # what is asked for is remembered, and must not outlive the next edit
            for name in NAMES:
                lines = [line for canonical, line in fields.fields if canonical == name]
                assert [line for _, line in fields.lines(name)] == lines
                assert fields.get(name) == (field_value(lines[0]) if lines else None)
                assert (name in fields) == bool(lines)


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        (["Via: SIP/2.0/UDP a"], []),
        (["Via: SIP/2.0/UDP a", "v: SIP/2.0/UDP b"], ["v: SIP/2.0/UDP b"]),
        (["v: SIP/2.0/UDP a , SIP/2.0/UDP b"], ["Via: SIP/2.0/UDP b"]),
    ],
)
def test_the_first_element_goes_and_with_it_its_line_if_it_was_alone(
    lines: list[str], left: list[str]
) -> None:
    fields = Headers([("to", "To: <sip:c>"), *(("via", line) for line in lines)])
    fields.remove_first_value("via", "Via")
    assert [line for _, line in fields.lines("via")] == left
    assert fields.get("via") == (left[0].partition(" ")[2] if left else None)
    assert fields.get("to") == "<sip:c>"
