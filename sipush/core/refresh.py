"""The REGISTER that says nothing new: what nearly all refreshes are (RFC 3261 §10.2.4).

Only its times, Call-ID, CSeq and flow differ from the one before it. To read the rest and decide on
it again would be a fifth of all its work.
"""

from __future__ import annotations

from typing import Final

from sipush.core.bindings import Aor, Binding, PushRecord, Registration
from sipush.core.registration import Decision, RegistrationPolicy, Update
from sipush.sip.message import Request

MAX_KNOWN = 20_000
"Devices. Each takes about a kilobyte."
FORGOTTEN_AFTER: Final = 3600.0
"""Seconds after which all are forgotten where there are more: not before, as learning one that is
forgotten when it comes again costs more than it could save."""

_NEW_EACH_TIME: Final = frozenset({"via", "from", "call-id", "cseq", "authorization"})
"Header fields that differ from one refresh to the next."


def what_is_said(request: Request, aor: Aor) -> str:
    """All that ``register`` goes by, but for ``location``, times, Call-ID, CSeq and flow.

    It counts Vias too, where a Contact has a ``reg-id``: such a one is not learnt.
    """
    lines = [line for name, line in request.headers.fields if name not in _NEW_EACH_TIME]
    lines.append(aor)
    return "\n".join(lines)


class Refreshes:
    """Decides as ``register`` does on what was said before, in a tenth of its time."""

    def __init__(self) -> None:
        self._known: dict[str, Update] = {}
        self._policy: RegistrationPolicy | None = None
        "What was known under another is forgotten."
        self._since_epoch = 0.0
        "When anything was forgotten."

    def decide(
        self, said: str, request: Request, flow: str, policy: RegistrationPolicy, now_epoch: float
    ) -> Update | None:
        """The Update for a REGISTER, or None when ``register`` has to be asked."""
        known = self._known.get(said)
        if known is None or policy is not self._policy:
            return None
        call_id, cseq, before = request.call_id, request.cseq.number, known.registration
        (old,) = before.bind
        if policy.node and flow != old.flow:
            return None  # the Path by which the other nodes reach it names the flow
        binding = Binding(
            old.aor,
            old.device,
            old.contact,
            old.contact_key,
            now_epoch + round(old.expires_epoch - old.registered_epoch),
            call_id,
            cseq,
            flow,
            old.params,
            old.path,
            old.user_agent,
            now_epoch,
        )
        registration = Registration(
            before.aor,
            call_id,
            cseq,
            now_epoch,
            before.max_contacts,
            (binding,),
            before.unbind,
            before.unbind_all,
            (_refreshed(before.push[0], policy, now_epoch),) if before.push else (),
            before.push_off,
            before.unpushed,
            before.refreshes,
            before.max_push_records,
        )
        return Update(registration, known.headers, known.devices, known.push_fault)

    def learn(self, said: str, policy: RegistrationPolicy, decision: Decision) -> None:
        """Know from now on what ``register`` decided, with no ``location`` to go by."""
        if not isinstance(decision, Update) or not _is_plain(decision):
            return
        now_epoch = decision.registration.now_epoch
        is_old = now_epoch >= self._since_epoch + FORGOTTEN_AFTER
        is_full = len(self._known) >= MAX_KNOWN and said not in self._known
        if policy is not self._policy or (is_full and is_old):
            self._policy, self._known, self._since_epoch = policy, {}, now_epoch
        elif is_full:
            return
        self._known[said] = decision


def _is_plain(update: Update) -> bool:
    """Whether one device registers, and nothing that is answered depends on time or flow."""
    asked = update.registration
    if asked.unbind or asked.unbind_all or asked.push_off or asked.refreshes:
        return False
    if len(asked.bind) != 1 or len(asked.push) > 1 or ";reg-id" in asked.bind[0].params:
        return False
    return all(name != "Feature-Caps" for name, _ in update.headers)


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
