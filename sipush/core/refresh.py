"""The REGISTER that says nothing new: what nearly all refreshes are (RFC 3261 §10.2.4).

Only its times, Call-ID, CSeq and flow differ from the one before it. To read the rest and decide on
it again would be a fifth of all its work.
"""

from __future__ import annotations

from typing import Final

from sipush.core.bindings import Binding, Location, PushRecord, Registration, is_by_contact
from sipush.core.registration import (
    GOES_BY,
    REFRESH_AHEAD,
    Decision,
    HeaderList,
    RegistrationPolicy,
    Update,
)
from sipush.sip.message import Request

_MAX_COMMON: Final = 10_000
"Texts and headers that are kept as those of several devices."

_DAY: Final = 86400.0
"Seconds that a PURR is the same."


def what_is_said(request: Request) -> str:
    """All that ``register`` goes by, but for ``location``, times, Call-ID, CSeq, Vias and flow."""
    return "\n".join([line for name, line in request.headers.fields if name in GOES_BY])


class _Said:
    """What a device said, and was told, beside its binding: without what stays empty."""

    __slots__ = (
        "changes_daily",
        "first_hop",
        "headers",
        "is_refreshed",
        "policy",
        "push",
        "push_fault",
        "said",
        "unpushed",
    )

    def __init__(self, said: int, policy: RegistrationPolicy, update: Update) -> None:
        registration, headers = update.registration, update.headers
        self.policy = policy
        self.said = said
        """The hash of it, which is long. That two texts of one user have the same is as unlikely
        as guessing 64 bits."""
        self.push = registration.push
        "Its push record of last time."
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
    """Decides as ``register`` does on what was said before, in a tenth of its time.

    What is known of a device lies with its binding, as long as the store in memory has that.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._headers: dict[HeaderList, HeaderList] = {}
        "What most devices have in common, and each would keep for itself."

    @staticmethod
    def decide(
        request: Request,
        flow: str,
        policy: RegistrationPolicy,
        now_epoch: float,
        *,
        said: str,
        location: Location,
    ) -> Update | None:
        """The Update for a REGISTER, or None when ``register`` has to be asked.

        ``location``: all that is stored of the user, with what has expired.
        """
        found = _find(hash(said), location)
        if found is None:
            return None
        old, known = found
        if policy is not known.policy:
            return None
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
        binding.known = known
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
        known.push = registration.push
        return Update(registration, known.headers, (old.device,), known.push_fault)

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
        known = _Said(hash(said), policy, decision)
        if not known.changes_daily and (
            known.headers in self._headers or len(self._headers) < _MAX_COMMON
        ):
            known.headers = self._headers.setdefault(known.headers, known.headers)
        for record in known.push:
            record.app_id = self._once(record.app_id)
        (binding,) = decision.registration.bind
        binding.user_agent = self._once(binding.user_agent)
        binding.known = known

    def _once(self, text: str) -> str:
        if len(self._texts) >= _MAX_COMMON:
            return self._texts.get(text, text)
        return self._texts.setdefault(text, text)


def _find(said: int, location: Location) -> tuple[Binding, _Said] | None:
    for binding in location.bindings:
        known = binding.known
        if isinstance(known, _Said) and known.said == said:
            return binding, known
    return None


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


def _is_another_now(old: Binding, location: Location) -> bool:
    """Whether a phone that only its Contact tells may be a device that has told more since."""
    return any(
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
