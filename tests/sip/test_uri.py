import pytest
from hypothesis import given
from hypothesis import strategies as st

from sipush.errors import MessageError
from sipush.sip.uri import (
    SipUri,
    TelUri,
    contact_key,
    parse_sip_uri,
    parse_tel_uri,
    with_user,
)


@pytest.mark.parametrize(
    "text",
    [
        "sip:bob@example.com",
        "sips:bob:secret@example.com:5061;transport=tls;lr?subject=x",
        "sip:+1-212;phone-context=x@example.com;user=phone",
        "sip:[2001:db8::1]:5060",
        "sip:null-%00-null@example.com",
        "sip:example.com",
    ],
)
def test_a_uri_is_written_as_it_was_read(text: str) -> None:
    assert str(parse_sip_uri(text)) == text


def test_the_address_of_record_is_unescaped_and_its_host_lower_case() -> None:
    assert parse_sip_uri("SIP:%61lice@EXAMPLE.com;transport=TCP").aor == "alice@example.com"
    assert parse_sip_uri("sip:a@b;transport=TCP").transport == "tcp"
    assert parse_sip_uri("sip:[2001:DB8::1]").address == "2001:db8::1"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("tel:+1212", 416),
        ("sip:", 400),
        ("<sip:a@b>", 400),
        ("sip:a b@c", 400),
        ("sip:a@b:99999", 400),
        ("", 400),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused(text: str, status: int) -> None:
    with pytest.raises(MessageError) as caught:
        parse_sip_uri(text)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("text", "number", "context"),
    [
        ("tel:+358-(555)-123.4567;postd=pp22", "+3585551234567", ""),
        ("TEL:7042;phone-context=Example.COM", "7042", "example.com"),
        ("tel:*21#;x=y;Phone-Context=+49", "*21#", "+49"),
    ],
)
def test_a_telephone_number_loses_what_only_people_read(
    text: str, number: str, context: str
) -> None:
    assert parse_tel_uri(text) == TelUri(number, context)


@pytest.mark.parametrize("text", ["tel:", "tel:-", "tel:a b", "tel:12;", "sip:+12@a", "tel:12>"])
def test_what_is_no_telephone_number_is_none(text: str) -> None:
    assert parse_tel_uri(text) is None


@pytest.mark.parametrize(
    ("server", "user", "uri"),
    [
        ("sip:192.0.2.10;transport=tcp", "+49301234", "sip:+49301234@192.0.2.10;transport=tcp"),
        ("sips:pbx.example.com:5062", "#21*", "sips:%2321*@pbx.example.com:5062"),
        ("sip:[2001:db8::1]", "a@b:c d\udcff", "sip:a%40b%3Ac%20d%FF@[2001:db8::1]"),
    ],
)
def test_a_user_at_a_server(server: str, user: str, uri: str) -> None:
    assert with_user(server, user) == uri
    assert parse_sip_uri(uri).aor.rpartition("@")[0] == user


def test_a_contact_stays_the_same_when_only_its_push_token_changes() -> None:
    first = contact_key("sip:a@10.0.0.1:5060;pn-prid=x;ob")
    assert first == contact_key("sip:%61@10.0.0.1:5060;ob;pn-prid=y")
    assert first != contact_key("sip:a@10.0.0.1:5062;ob")


def read(text: str) -> SipUri | tuple[str, int]:
    try:
        return parse_sip_uri(text)
    except MessageError as error:
        return error.reason, error.status


@given(
    st.lists(
        st.sampled_from(
            ("a", "1", "é", "@", ":", ".", "H", "5060", "0", "99999", " ", "[", ";", "=", "?", "A@")
        ),
        max_size=8,
    )
)
def test_a_scheme_in_capitals_changes_nothing_else(parts: list[str]) -> None:
    # In small letters a usual URI is read by a shorter way.
    assert read(f"sip:{''.join(parts)}") == read(f"SIP:{''.join(parts)}")
