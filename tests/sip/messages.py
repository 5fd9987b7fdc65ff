"""Messages for tests."""

from sipush.sip.message import Message, Request, parse_datagram

BRANCH = "z9hG4bK-1"
TOP_VIA = f"SIP/2.0/UDP 192.0.2.1:5060;branch={BRANCH};rport"


def request_bytes(
    method: str = "OPTIONS",
    uri: str = "sip:bob@example.com",
    *,
    without: str = "",
    extra: tuple[str, ...] = (),
    body: bytes = b"",
    **changed: str,
) -> bytes:
    """A request; ``changed`` replaces a header's value (``call_id=…``), ``without`` drops one."""
    headers = {
        "Via": TOP_VIA,
        "Max-Forwards": "70",
        "From": "Alice <sip:alice@example.com>;tag=a1",
        "To": "<sip:bob@example.com>",
        "Call-ID": "call-1@192.0.2.1",
        "CSeq": f"1 {method}",
        "Content-Length": str(len(body)),
    }
    by_name = {name.lower().replace("-", "_"): name for name in headers}
    for name, value in changed.items():
        headers[by_name[name.rstrip("_")]] = value
    lines = [f"{name}: {value}" for name, value in headers.items() if name != without]
    return "\r\n".join([f"{method} {uri} SIP/2.0", *lines, *extra, "", ""]).encode() + body


def request(method: str = "OPTIONS", uri: str = "sip:bob@example.com", **changed: str) -> Request:
    """As ``request_bytes``, parsed."""
    message: Message = parse_datagram(request_bytes(method, uri, **changed))
    assert isinstance(message, Request)
    return message
