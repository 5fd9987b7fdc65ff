import pytest

from sipush.errors import MessageError
from sipush.sip.uri import contact_key, parse_sip_uri


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


def test_a_contact_stays_the_same_when_only_its_push_token_changes() -> None:
    first = contact_key("sip:a@10.0.0.1:5060;pn-prid=x;ob")
    assert first == contact_key("sip:%61@10.0.0.1:5060;ob;pn-prid=y")
    assert first != contact_key("sip:a@10.0.0.1:5062;ob")
