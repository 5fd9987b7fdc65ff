"""What was parsed is kept, as long as there is room, and no error is."""

from __future__ import annotations

import pytest

from sipush.errors import MessageError
from sipush.sip.fields import NameAddr, parse_name_addr
from sipush.sip.memo import LONGEST, Memo


def addresses(memo: Memo[NameAddr], *users: str) -> list[NameAddr]:
    return [memo.get(f"<sip:{user}@example.com>") for user in users]


def test_the_same_text_gives_the_same_result_until_too_many_others_came() -> None:
    memo = Memo(parse_name_addr, 2)
    alice, bob = addresses(memo, "alice", "bob")
    assert alice.uri == "sip:alice@example.com"
    again = addresses(memo, "alice", "bob")
    assert again[0] is alice
    assert again[1] is bob
    addresses(memo, "carol")
    (anew,) = addresses(memo, "alice")
    assert anew is not alice
    assert anew == alice


def test_an_error_is_raised_each_time() -> None:
    memo = Memo(parse_name_addr, 2)
    for _ in range(2):
        with pytest.raises(MessageError, match="Malformed Address"):
            memo.get("<sip:alice")


def test_a_long_text_is_read_each_time() -> None:
    memo = Memo(parse_name_addr, 2)
    first, again = addresses(memo, "a" * LONGEST, "a" * LONGEST)
    assert again is not first
    assert again == first
