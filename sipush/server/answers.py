"""Responses that sipush makes itself."""

from __future__ import annotations

import math

import structlog

from sipush.core.rejection import Rejection, rejection_response
from sipush.log_lines import shown
from sipush.server.transactions import ServerTransactionHandle
from sipush.sip.message import Request, Response, make_response
from sipush.sip.status import Status

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER, MESSAGE, INFO, UPDATE, PRACK, REFER"
log = structlog.get_logger()

RETRY_AFTER = "5"
"Seconds after which a client may try again when the store or the server is not ready."

DRAINING = Rejection(
    Status.SERVICE_UNAVAILABLE, "Server Is Going Down", (("Retry-After", RETRY_AFTER),)
)
STORE_DOWN = Rejection(
    Status.SERVICE_UNAVAILABLE, "Location Store Not Reachable", (("Retry-After", RETRY_AFTER),)
)
INTERNAL_ERROR = Rejection(Status.SERVER_INTERNAL_ERROR)


def respond(transaction: ServerTransactionHandle, response: Response) -> None:
    """Send a final response to a request that goes nowhere, unless a CANCEL has had it answered."""
    if not transaction.completed:
        transaction.refuse(response)


def reject(transaction: ServerTransactionHandle, rejection: Rejection, tag: str) -> None:
    """Answer instead of forwarding."""
    response = rejection_response(transaction.request, rejection, tag)
    tell_refused(transaction, response)
    respond(transaction, response)


def tell_refused(transaction: ServerTransactionHandle, response: Response) -> None:
    """A call or message that goes nowhere has no other line in the log."""
    request = transaction.request
    if request.method in ("INVITE", "MESSAGE") or shown.debug:
        log.info(
            "request_refused",
            call_id=request.call_id,
            method=request.method,
            uri=request.uri,
            status=response.status,
            reason=response.reason,
            remote=transaction.flow.remote[0],
        )


def wait_to_sign_in(request: Request, seconds: float, tag: str) -> Response:
    """To a user whose password is not looked at for so long."""
    status, reason = Status.SERVICE_UNAVAILABLE, "Too Many Failed Sign-Ins"
    response = make_response(request, status, reason, to_tag=tag)
    response.headers.append("Retry-After", str(math.ceil(seconds)))
    return response


def answer_for_server(transaction: ServerTransactionHandle, tag: str) -> None:
    """A request for sipush itself: OPTIONS says what it can do (§11.2), nothing else is done."""
    if transaction.request.method != "OPTIONS":
        not_allowed = Rejection(Status.METHOD_NOT_ALLOWED, headers=(("Allow", ALLOW),))
        no_dialog = Rejection(Status.CALL_OR_TRANSACTION_DOES_NOT_EXIST)  # §12.2.2
        reject(transaction, no_dialog if transaction.request.to.tag else not_allowed, tag)
        return
    response = make_response(transaction.request, Status.OK, to_tag=tag)
    response.headers.append("Allow", ALLOW)
    response.headers.append("Supported", "path, outbound")
    respond(transaction, response)
