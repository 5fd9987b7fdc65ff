"""The REGISTER that says nothing new: what nearly all refreshes are (RFC 3261 §10.2.4).

Only its times, Call-ID, CSeq and flow differ from the one before it. To read the rest and decide on
it again would be a fifth of all its work.
"""

from __future__ import annotations

from typing import Final

from sipush.core.bindings import Aor, Binding, Location, PushRecord, Registration, is_by_contact
from sipush.core.registration import (
    GOES_BY,
    REFRESH_AHEAD,
    Decision,
    HeaderList,
    RegistrationPolicy,
    Update,
)
from sipush.sip.message import Request

MAX_KNOWN: Final = 1_000_000
"Users: 300 bytes for each device, as the store in memory has binding and push record anyway."
MAX_DEVICES: Final = 4
"Of one user that are known: of who says something else each time not all is kept."
_MAX_COMMON: Final = 10_000
"Texts and headers that may be those of several devices, for the same reason."
FORGOTTEN_AFTER: Final = 3600.0
"""Seconds after which all are forgotten where there are more: not before, as learning one that is
forgotten when it comes again costs more than it could save."""

_DAY: Final = 86400.0
"Seconds that a PURR is the same."


def what_is_said(request: Request) -> str:
    """All that ``register`` goes by, but for ``location``, times, Call-ID, CSeq, Vias and flow."""
    return "\n".join([line for name, line in request.headers.fields if name in GOES_BY])


class _Said:
    """What a device said, and was told: without what the policy says, and what stays empty."""

    __slots__ = (
        "bind",
        "changes_daily",
        "first_hop",
        "headers",
        "is_refreshed",
        "push",
        "push_fault",
        "said",
        "unpushed",
    )

    def __init__(self, said: int, update: Update) -> None:
        registration, headers = update.registration, update.headers
        self.said = said
        """The hash of it, which is long. That two texts of one user have the same is as unlikely
        as guessing 64 bits."""
        self.bind = registration.bind
        "Its binding of last time, and below its push record."
        self.push = registration.push
        self.unpushed = registration.unpushed
        self.is_refreshed = bool(registration.refreshes)
        "Whether it is pushed before its binding expires."
        self.headers = headers
        self.changes_daily = any("+sip.pnspurr=" in value for _, value in headers)
        "Whether its headers have a PURR."
        self.first_hop = any(name == "Flow-Timer" for name, _ in headers)
        "Whether they hold only if we are that (RFC 5626 §6), and for its transport."
        self.push_fault = update.push_fault


class Refreshes:
    """Decides as ``register`` does on what was said before, in a tenth of its time."""

    def __init__(self, max_known: int = MAX_KNOWN) -> None:
        """``max_known``: users."""
        self._max_known = max_known
        self._known: dict[Aor, tuple[_Said, ...]] = {}
        self._policy: RegistrationPolicy | None = None
        "What was known under another is forgotten."
        self._since_epoch = 0.0
        "When anything was forgotten."
        self._texts: dict[str, str] = {}
        self._headers: dict[HeaderList, HeaderList] = {}
        "What most devices have in common, and each would keep for itself."

    def decide(
        self,
        request: Request,
        aor: Aor,
        flow: str,
        policy: RegistrationPolicy,
        now_epoch: float,
        *,
        said: str,
        location: Location | None,
    ) -> Update | None:
        """The Update for a REGISTER, or None when ``register`` has to be asked.

        ``location``: all that is stored of the user, with what has expired; None: unknown.
        """
        known = self._find(hash(said), aor)
        if known is None or policy is not self._policy:
            return None
        (old,) = known.bind
        if policy.node and flow != old.flow:
            return None  # the Path by which the other nodes reach it names the flow
        if is_by_contact(old.device) and _is_another_now(old, location):
            return None
        if known.first_hop and not _comes_as_directly(request, flow, old.flow):
            return None
        if known.changes_daily and now_epoch // _DAY != old.registered_epoch // _DAY:
            return None
        call_id, cseq = request.call_id, request.cseq.number
        if call_id == old.call_id:
            call_id = old.call_id  # already kept: no other string need replace it
        expires_epoch = now_epoch + round(old.expires_epoch - old.registered_epoch)
        binding = Binding(
            old.aor,
            old.device,
            old.contact,
            old.contact_key,
            expires_epoch,
            call_id,
            cseq,
            flow,
            old.params,
            old.path,
            old.user_agent,
            now_epoch,
        )
        registration = Registration(
            old.aor,
            call_id,
            cseq,
            now_epoch,
            policy.max_contacts,
            (binding,),
            (),
            False,
            (_refreshed(known.push[0], policy, now_epoch),) if known.push else (),
            (),
            known.unpushed,
            ((old.device, expires_epoch - REFRESH_AHEAD),) if known.is_refreshed else (),
            policy.max_push_records,
            flow,
        )
        known.bind, known.push = registration.bind, registration.push
        return Update(registration, known.headers, (old.device,), known.push_fault)

    def _find(self, said: int, aor: Aor) -> _Said | None:
        for known in self._known.get(aor, ()):
            if known.said == said:
                return known
        return None

    def learn(
        self,
        said: str,
        policy: RegistrationPolicy,
        decision: Decision,
        location: Location | None,
    ) -> None:
        """Know from now on what ``register`` decided, with that ``location`` to go by."""
        if not isinstance(decision, Update) or not _is_plain(decision, location):
            return
        aor, now_epoch = decision.registration.aor, decision.registration.now_epoch
        is_old = now_epoch >= self._since_epoch + FORGOTTEN_AFTER
        is_full = len(self._known) >= self._max_known and aor not in self._known
        if policy is not self._policy or (is_full and is_old):
            self._policy, self._since_epoch = policy, now_epoch
            self._known, self._texts, self._headers = {}, {}, {}
        elif is_full:
            return
        known = _Said(hash(said), decision)
        if len(self._headers) < _MAX_COMMON and not known.changes_daily:
            known.headers = self._headers.setdefault(known.headers, known.headers)
        for binding in known.bind:
            binding.user_agent = self._once(binding.user_agent)
        for record in known.push:
            record.app_id = self._once(record.app_id)
        device = known.bind[0].device
        others = [other for other in self._known.get(aor, ()) if other.bind[0].device != device]
        self._known[aor] = (known, *others[: MAX_DEVICES - 1])

    def _once(self, text: str) -> str:
        if len(self._texts) >= _MAX_COMMON:
            return self._texts.get(text, text)
        return self._texts.setdefault(text, text)


def _is_plain(update: Update, location: Location | None) -> bool:
    """Whether one device registers, and its next refresh tells all that the answer depends on."""
    asked = update.registration
    if asked.unbind or asked.unbind_all or asked.push_off:
        return False
    if len(asked.bind) != 1 or len(asked.push) > 1:
        return False
    if location is not None and not is_by_contact(asked.bind[0].device):
        return False
    # A reg-id that was ignored may count when the same comes without a proxy between.
    return ";reg-id" not in asked.bind[0].params or ("Require", "outbound") in update.headers


def _is_another_now(old: Binding, location: Location | None) -> bool:
    """Whether a phone that only its Contact tells may be a device that has told more since."""
    return location is None or any(
        b.contact_key == old.contact_key and b.device != old.device for b in location.bindings
    )


def _comes_as_directly(request: Request, flow: str, old_flow: str) -> bool:
    if flow.startswith("udp/") is not old_flow.startswith("udp/"):
        return False
    return len(request.headers.values("via")) == 1


def _refreshed(record: PushRecord, policy: RegistrationPolicy, now_epoch: float) -> PushRecord:
    return PushRecord(
        record.aor,
        record.device,
        record.platform,
        record.app_id,
        record.call_token,
        record.message_token,
        record.allow_call,
        record.allow_message,
        record.dialect,
        record.extra,
        now_epoch,
        now_epoch + policy.push_record_lifetime,
    )
