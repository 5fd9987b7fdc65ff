from contextlib import suppress

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from sipush.errors import MessageError
from sipush.sip import fields
from sipush.sip.fields import CSeq, NameAddr, parse_cseq, parse_name_addr, parse_via
from sipush.sip.uri import parse_sip_uri


@pytest.mark.parametrize(
    ("text", "uri", "display", "tag"),
    [
        ("<sip:a@b>;tag=1", "sip:a@b", "", "1"),
        ('"J, \\"R\\" <x>" <sip:a@b;lr> ;tag=1', "sip:a@b;lr", 'J, "R" <x>', "1"),
        ("Alice Liddell <sip:a@b>", "sip:a@b", "Alice Liddell", None),
        ("sip:a@b;tag=1", "sip:a@b", "", "1"),
        ("tel:+1212", "tel:+1212", "", None),
    ],
)
def test_addresses_are_read_in_every_form(
    text: str, uri: str, display: str, tag: str | None
) -> None:
    address = parse_name_addr(text)
    assert (address.uri, address.display_name, address.tag) == (uri, display, tag)


def _some(*pieces: str) -> st.SearchStrategy[str]:
    """A few of these in a row, and now and then what does not belong there."""
    odd = st.sampled_from(['"', "<", ">", ";", "=", " ", "\\", ",", "?", "%", "\n", "\u00e9"])
    most = [st.sampled_from(pieces)] * 19
    return st.lists(st.one_of(*most, odd), max_size=3).map("".join)


@given(
    st.sampled_from(["", '"A B"', '"A" ', "A ", '"<"', '"\\""', " "]),
    st.sampled_from(["sip:a@b", "sip:a@b:5070", "sip:b", "SIP:a@[::1]", "tel:+1", ""]),
    _some(";ob", ";transport=TCP", ";x=%40", "?h=1"),
    _some(";tag=1", ";q=0.5", ';+sip.instance="<urn:x;y>"', ";reg-id=1", ";Lr", ' ; a = "\\""'),
)
def test_a_usual_address_is_read_as_all_others_are(
    name: str, uri: str, uri_params: str, params: str
) -> None:
    text = f"{name}<{uri}{uri_params}>{params}"
    usual, other = fields._usual_name_addr(text), None
    with suppress(MessageError):
        other = fields._any_name_addr(text)
    event(f"taken: {usual is not None}")
    if usual is not None:
        assert usual == other
        assert usual.sip_uri == parse_sip_uri(usual.uri)


def test_a_parameter_before_the_bracket_belongs_to_the_uri() -> None:
    assert parse_name_addr("<sip:a@b;tag=uri>;tag=header").tag == "header"


@pytest.mark.parametrize(
    "text", ["", "bob", '"open <sip:a@b>', "<sip:a@b", "<sip:a b>", "<a>", "<sip:a@b>\x1f"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse_name_addr(text)


def test_an_address_is_written_in_brackets_with_its_name_quoted() -> None:
    address = NameAddr("sip:a@b", 'Al "x"', {"tag": "1", "lr": None})
    assert str(address) == '"Al \\"x\\"" <sip:a@b>;tag=1;lr'
    assert parse_name_addr(str(address)) == address


def test_a_via_is_read_whatever_its_spaces() -> None:
    via = parse_via("SIP / 2.0 / udp [2001:db8::1] : 5060 ;branch=z9hG4bK1;rport")
    assert str(via) == "SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bK1;rport"
    assert (via.branch, via.sent_by) == ("z9hG4bK1", "[2001:db8::1]:5060")


@pytest.mark.parametrize(
    ("params", "branch"),
    [
        ("", ""),
        (";rport", ""),
        (";branch", ""),
        (";branch=;branch=b", ""),
        (";branch=z9hG4bK-1;rport", "z9hG4bK-1"),
        (";branch= z9hG4bK-1 ;branch=b", "z9hG4bK-1"),
        (";branch=a=b", "a=b"),
        (';branch="a;b";rport', '"a;b"'),
        (";branch=<a;b>;rport", "<a;b>"),
        (";;BRANCH=a;branch=b", "a"),
        (";rport;branch=a", "a"),
    ],
)
def test_a_branch_is_what_the_parameters_say(params: str, branch: str) -> None:
    via = parse_via(f"SIP/2.0/UDP a{params}")
    assert via.branch == branch
    assert (via.params.get("branch") or "") == branch


@pytest.mark.parametrize("text", ["", "SIP/2.0/UDP", "SIP/3.0/UDP a", "SIP/2.0/UDP a:0"])
def test_what_is_no_via_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse_via(text)


@pytest.mark.parametrize("text", ["1 INVITE", "0001\tINVITE", "1    INVITE"])
def test_a_cseq_is_read_whatever_its_spaces(text: str) -> None:
    assert parse_cseq(text) == CSeq(1, "INVITE")


@pytest.mark.parametrize("text", ["", "1", "INVITE", "-1 INVITE", "2147483648 INVITE", "1 IN VITE"])
def test_what_is_no_cseq_is_refused(text: str) -> None:
    with pytest.raises(MessageError):
        parse_cseq(text)


@pytest.mark.parametrize(
    "text",
    ["a" * 60_000 + '" <', " " * 60_000 + '" <', '"' + "\\" * 60_000, "a " * 30_000 + "<"],
)
@pytest.mark.timeout(5)
def test_a_hostile_address_costs_no_more_than_its_length(text: str) -> None:
    with pytest.raises(MessageError):
        parse_name_addr(text)


@pytest.mark.parametrize("text", ["SIP/2.0/UDP a" + " " * 60_000 + "x", "SIP" + " " * 60_000])
@pytest.mark.timeout(5)
def test_a_hostile_via_costs_no_more_than_its_length(text: str) -> None:
    with pytest.raises(MessageError):
        parse_via(text)
