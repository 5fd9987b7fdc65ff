"""Where somebody is: civic addresses as PIDF-LO (RFC 4119, RFC 5139)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from xml.sax.saxutils import escape, quoteattr

CivicAddress = Mapping[str, str]
"""Value by element name: ``{"country": "DE", "A3": "Berlin", "RD": "Unter den Linden"}``."""

# fmt: off
#: The elements of a civicAddress in the order of its schema (RFC 5139 §4).
CIVIC_ELEMENTS = (
    "country", "A1", "A2", "A3", "A4", "A5", "A6", "PRM", "PRD", "RD", "STS", "POD", "POM",
    "RDSEC", "RDBR", "RDSUBBR", "HNO", "HNS", "LMK", "LOC", "FLR", "NAM", "PC", "BLD", "UNIT",
    "ROOM", "SEAT", "PLC", "PCN", "POBOX", "ADDCODE",
)
# fmt: on

#: How long a recipient may keep it: the default of RFC 4119 §2.2.2.
_RETENTION = timedelta(hours=24)


def pidf_lo(entity: str, address: CivicAddress, now_epoch: float) -> bytes:
    """The presence document that says: ``entity`` (a pres: URI) is at this address.

    It may be passed on: whoever answers an emergency call has to tell those who drive there.
    """
    now = datetime.fromtimestamp(now_epoch, UTC).replace(microsecond=0)
    civic = "".join(
        f"<cl:{name}>{escape(address[name])}</cl:{name}>"
        for name in CIVIC_ELEMENTS
        if name in address
    )
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\r\n'
        '<presence xmlns="urn:ietf:params:xml:ns:pidf"'
        ' xmlns:gp="urn:ietf:params:xml:ns:pidf:geopriv10"'
        ' xmlns:cl="urn:ietf:params:xml:ns:pidf:geopriv10:civicAddr"'
        f" entity={quoteattr(entity)}>"
        '<tuple id="address"><status><gp:geopriv>'
        f"<gp:location-info><cl:civicAddress>{civic}</cl:civicAddress></gp:location-info>"
        "<gp:usage-rules>"
        "<gp:retransmission-allowed>true</gp:retransmission-allowed>"
        f"<gp:retention-expiry>{_time(now + _RETENTION)}</gp:retention-expiry>"
        "</gp:usage-rules><gp:method>Manual</gp:method>"
        "</gp:geopriv></status>"
        f"<timestamp>{_time(now)}</timestamp></tuple></presence>\r\n"
    )
    return text.encode("utf-8", "replace")


def _time(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
