"""Civic addresses as presence documents."""

from __future__ import annotations

from xml.etree import ElementTree

from sipush.core.pidf import CIVIC_ELEMENTS, pidf_lo

PIDF = "{urn:ietf:params:xml:ns:pidf}"
GP = "{urn:ietf:params:xml:ns:pidf:geopriv10}"
CIVIC = "{urn:ietf:params:xml:ns:pidf:geopriv10:civicAddr}"


def test_the_elements_stand_in_the_order_of_the_schema() -> None:
    address = {name: f"value of {name}" for name in reversed(CIVIC_ELEMENTS)}
    civic = ElementTree.fromstring(pidf_lo("pres:a@b", address, 0)).find(f".//{CIVIC}civicAddress")
    assert civic is not None
    assert [each.tag.removeprefix(CIVIC) for each in civic] == list(CIVIC_ELEMENTS)
    assert [each.text for each in civic] == [f"value of {name}" for name in CIVIC_ELEMENTS]


def test_only_what_is_on_file_is_told_and_markup_in_it_is_text() -> None:
    document = ElementTree.fromstring(
        pidf_lo('pres:"&<@b', {"country": "DE", "LOC": "<Hof & Garten>"}, 0)
    )
    assert document.get("entity") == 'pres:"&<@b'
    civic = document.find(f".//{CIVIC}civicAddress")
    assert civic is not None
    assert [each.text for each in civic] == ["DE", "<Hof & Garten>"]


def test_it_may_be_passed_on_and_kept_for_a_day() -> None:
    document = ElementTree.fromstring(pidf_lo("pres:a@b", {"country": "DE"}, 1_700_000_000.7))
    path = f"{PIDF}tuple/{PIDF}status/{GP}geopriv/{GP}usage-rules/"
    assert document.findtext(f"{path}{GP}retransmission-allowed") == "true"
    assert document.findtext(f"{path}{GP}retention-expiry") == "2023-11-15T22:13:20Z"
    assert document.findtext(f"{PIDF}tuple/{PIDF}timestamp") == "2023-11-14T22:13:20Z"
