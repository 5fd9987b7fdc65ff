import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from sipush.sip import grammar
from sipush.sip.grammar import (
    is_token,
    parse_params,
    quote_string,
    split_outside,
    unescape,
    unquote_string,
)


@given(st.text())
def test_a_quoted_text_unquotes_to_itself_without_line_ends(text: str) -> None:
    quoted = quote_string(text)
    assert "\r" not in quoted
    assert "\n" not in quoted
    assert unquote_string(quoted) == text.replace("\r", " ").replace("\n", " ")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ('"a, b" <sip:x>, c', ['"a, b" <sip:x>', "c"]),
        (r'"a\", b", c', [r'"a\", b"', "c"]),
        ("<sip:a@b?x=1,2>, c", ["<sip:a@b?x=1,2>", "c"]),
        ('"open, quote', ['"open, quote']),
    ],
)
def test_separators_in_quotes_and_brackets_do_not_split(text: str, parts: list[str]) -> None:
    assert split_outside(text, ",") == parts


@given(st.text('",;<>\\ a='), st.sampled_from(",;"))
def test_what_is_split_by_its_quotes_is_split_as_all_other_text(text: str, separator: str) -> None:
    parts = grammar._split_outside_quotes(text, separator)
    event(f"taken: {parts is not None}")
    if parts is not None:
        assert parts == grammar._split_outside_any(text, separator)


def test_params_keep_values_as_written_and_the_first_of_equal_names() -> None:
    params = parse_params(';Tag=A1 ; lr;q="a;b";tag=b; ;x=')
    assert params == {"tag": "A1", "lr": None, "q": '"a;b"', "x": ""}


@pytest.mark.parametrize(("text", "token"), [("a-1.!%*_+`'~", True), ("a b", False), ("", False)])
def test_tokens_are_told_from_other_text(text: str, token: bool) -> None:
    assert bool(is_token(text)) == token


def test_escapes_are_decoded_and_bytes_that_are_not_utf8_survive() -> None:
    assert unescape("%61lic%65%00") == "alice\0"
    assert unescape("%ff").encode("utf-8", "surrogateescape") == b"\xff"
