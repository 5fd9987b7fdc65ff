"""The port behind which bindings, push records and subscribers live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Protocol

from sipush.core.bindings import Aor, Location, PushRecord, Refusal, Registration, Subscriber
from sipush.core.stored_message import Receipt, StoredMessage
from sipush.errors import LocationError, UnreadableError

WakeListener = Callable[[Aor], None]
"""Called on the event loop, with the AOR, when *another* process has stored a Registration."""

MissedListener = Callable[[float], None]
"""Called on the event loop: of Registrations since then (UNIX seconds) we may not have heard."""

Written = Callable[[], None]
"""Called on the event loop when what was asked for is out of our hands."""

SubscriberListener = Callable[[Aor | None], None]
"""Called on the event loop when a subscriber that was read, or is just being read, was changed or
removed; with None any of them may have been."""

TOLD_LIFETIME = 600.0
"The ``subscriber_lifetime`` of a store that tells of changes."

UNTOLD_LIFETIME = 10.0
"That of one that does not."

SECRET_SIZE = 32
"Bytes."


def secret_of(text: str) -> bytes:
    """The secret that a store keeps as ``text``. Raises LocationError; a shorter one is none."""
    with suppress(TypeError, ValueError):  # SQLite has bytes where somebody wrote them
        secret = bytes.fromhex(text)
        if len(secret) == SECRET_SIZE:
            return secret
    allowed = f"allowed: {2 * SECRET_SIZE} hexadecimal digits; if removed, it is made anew"
    raise LocationError(f"the secret in the store cannot be read ({allowed})")


class LocationStore(Protocol):
    """Every method raises LocationError when the store cannot answer; then nothing was changed.

    Only when a store over the network falls silent in the middle is that not known; whatever was
    asked may be asked again.
    """

    outlives_us: bool
    "Whether what is stored is there when this process has died: else no call need be written down."

    async def open(self) -> None:
        """Connect, create or migrate what is needed. Raises LocationError with a usable reason."""

    async def close(self) -> None:
        """Finish what was accepted, then let go. May be called twice."""

    async def lookup(self, aor: Aor, now_epoch: float) -> Location:
        """The live bindings and push records of ``aor``. Raises UnreadableError too."""

    def last_known(self, aor: Aor) -> Location | None:
        """What is known of ``aor`` without asking anybody who may be silent; None: nothing is.

        There may be expired rows in it, and a store over the network may hold others by now.
        """

    async def bind(self, registration: Registration) -> Location | Refusal:
        """Apply one REGISTER atomically; when this returns a Location, it is stored durably."""

    async def remove_push_record(self, record: PushRecord) -> bool:
        """Compare-and-delete: remove the device.s record if ``same_tokens``; whether it did."""

    def listen(self, listener: WakeListener, missed: MissedListener | None = None) -> None:
        """Be told, from ``open`` on, of Registrations stored by other processes on the store."""

    def aors(self, after: Aor = "") -> AsyncIterator[Aor]:
        """Every AOR with a binding or push record that comes ``after`` that one.

        In an order of the store's own. For the CLI and the admin API; may be slow.
        """

    async def put_message(self, message: StoredMessage, max_stored: int) -> Receipt | None:
        """Store a message durably, unless one with its key is there. None: ``max_stored`` are.

        Delivery reports and the others are counted apart, each up to ``max_stored``.
        Its id is higher than every id given before, by any process, and no less than
        ``stored_epoch``, so that ids rise even after a store has lost its data.
        """

    async def messages(self, aor: Aor, now_epoch: float) -> tuple[StoredMessage, ...]:
        """Those that have not expired, by rising id."""

    async def remove_message(self, message: StoredMessage, now_epoch: float) -> bool:
        """Whether it was there. For REPEATED seconds it is one of ``gone_messages``."""

    async def gone_messages(self, now_epoch: float) -> list[tuple[Aor, str, float]]:
        """(AOR, key, until when) of the messages that were removed a moment ago."""

    async def take_refreshes(self, now_epoch: float) -> list[tuple[Aor, str]]:
        """(AOR, device) that a Registration had due by now, some hundred at most.

        Each is handed out once, to one process; whether its binding is still there is not known.
        """

    async def put_held_call(
        self, owner: str, held_id: str, held: bytes, written: Written | None = None
    ) -> None:
        """Store or replace a held call (JSON in UTF-8) of the process ``owner``.

        ``written``, which must not raise, is called in the turn of the event loop in which this is
        out of our hands: a store that works has it from then on, though we be killed. Whether it
        did its work is known at the end; if it is known before to have failed, nothing is called.
        """

    async def remove_held_call(self, owner: str, held_id: str) -> None:
        """The call is over."""

    async def claim_held_calls(self, owner: str, lease: float, *, own: bool) -> list[bytes]:
        """Renew our lease, for ``lease`` seconds; take over the calls of processes without one.

        Returns the calls taken over, which now are ours; with ``own`` also those that ``owner``
        itself stored in an earlier life. No call is ever given to two processes.
        """

    async def subscriber(self, aor: Aor) -> Subscriber | None:
        """The subscriber, or None."""

    @property
    def subscriber_lifetime(self) -> float:
        """Seconds for which one that was read may be kept, if no change of it is told."""

    def listen_to_subscribers(self, listener: SubscriberListener) -> None:
        """Be told of changes, if the store hears of them."""

    def notice_changes(self) -> None:
        """Before what was kept is used: tell of changes that the store hears of only if it asks."""

    async def put_subscriber(self, subscriber: Subscriber) -> None:
        """Add or replace."""

    async def remove_subscriber(self, aor: Aor) -> bool:
        """Whether there was one."""

    def subscribers(self) -> AsyncIterator[Subscriber | UnreadableError]:
        """Every subscriber, in no order; in the place of one who cannot be read, why."""

    async def put_ban(self, source: str, until_epoch: float) -> None:
        """Ban an address or network, or change until when it is banned."""

    async def bans(self, now_epoch: float) -> dict[str, float]:
        """Until when (UNIX seconds) sources are banned; those whose time is over are left out."""

    async def remove_ban(self, source: str) -> bool:
        """Whether there was one."""

    async def try_to_write(self) -> None:
        """Store something that nobody asks for: a store that can be read may take nothing."""

    async def secret(self) -> bytes:
        """32 random bytes, made at the first call ever and the same for every process since."""
