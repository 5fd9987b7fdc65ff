"""Locations: what calls know while the store is silent."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sipush.core.bindings import Location
from sipush.errors import LocationError
from sipush.server import locations
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
    rig.locations.saw(AOR, Location())
    assert (await rig.locations.lookup(AOR, NOW)).bindings != ()


async def test_of_too_many_those_unseen_for_the_longest_time_are_forgotten(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locations, "_SIZE", 2)
    for aor in ("a@example.com", "b@example.com", "a@example.com", "c@example.com"):
        rig.locations.saw(aor, Location())
    rig.store.down = True
    assert await rig.locations.lookup("a@example.com", NOW) == Location()
    with pytest.raises(LocationError):
        await rig.locations.lookup("b@example.com", NOW)
