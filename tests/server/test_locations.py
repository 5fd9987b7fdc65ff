"""Locations: what calls know while the store is silent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sipush.errors import LocationError
from sipush.server.locations import Locations
from tests.location.rows import AOR, NOW, binding, registration
from tests.server.stores import FallibleStore


@dataclass
class Rig:
    store: FallibleStore
    locations: Locations


@pytest.fixture
async def rig() -> Rig:
    store = FallibleStore()
    await store.bind(registration(binding()))
    return Rig(store, Locations(store))


async def test_what_was_looked_up_is_still_known_when_the_store_fails(rig: Rig) -> None:
    known = await rig.locations.lookup(AOR, NOW)
    rig.store.down = True
    assert await rig.locations.lookup(AOR, NOW) == known


async def test_what_has_expired_meanwhile_is_not(rig: Rig) -> None:
    known = await rig.locations.lookup(AOR, NOW)
    rig.store.down = True
    after = known.bindings[0].expires_epoch + 1
    assert (await rig.locations.lookup(AOR, after)).bindings == ()


async def test_what_was_never_seen_is_an_error(rig: Rig) -> None:
    rig.store.down = True
    with pytest.raises(LocationError):
        await rig.locations.lookup(AOR, NOW)


async def test_the_store_is_believed_as_soon_as_it_speaks(rig: Rig) -> None:
    await rig.locations.lookup(AOR, NOW)
    rig.store.down = True
    await rig.store.bind(registration(binding(contact="sip:101@192.0.2.2", cseq=2)))
    rig.store.down = False
    location = await rig.locations.lookup(AOR, NOW)
    assert [each.contact for each in location.bindings] == ["sip:101@192.0.2.2"]


async def test_the_devices_on_a_flow_are_those_that_are_known(rig: Rig) -> None:
    row = binding()
    assert rig.locations.devices_on(AOR, row.flow) == []
    await rig.locations.lookup(AOR, NOW)
    assert rig.locations.devices_on(AOR, row.flow) == [row.device]
    assert rig.locations.devices_on(AOR, "another") == rig.locations.devices_on("", row.flow) == []
