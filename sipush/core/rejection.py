"""A request that is answered instead of carried out or forwarded."""

from __future__ import annotations

from dataclasses import dataclass

from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status


@dataclass(frozen=True, slots=True)
class Rejection:
    """What it is answered; nothing is stored or forwarded."""

    status: Status
    reason: str = ""
    "Reason phrase; empty: the usual one."
    headers: tuple[tuple[str, str], ...] = ()


def rejection_response(request: Request, rejection: Rejection, to_tag: str) -> Response:
    """The final response of a Rejection."""
    response = make_response(request, rejection.status, rejection.reason or None, to_tag)
    for name, value in rejection.headers:
        response.headers.append(name, value)
    return response
