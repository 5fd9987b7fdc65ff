"""Status codes and their reason phrases (RFC 3261 §21 and the registry that grew from it)."""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """The response status codes sipush sends or decides upon."""

    TRYING = 100
    RINGING = 180
    CALL_IS_BEING_FORWARDED = 181
    QUEUED = 182
    SESSION_PROGRESS = 183
    OK = 200
    ACCEPTED = 202
    MOVED_TEMPORARILY = 302
    BAD_REQUEST = 400
    UNAUTHORIZED = 401
    FORBIDDEN = 403
    NOT_FOUND = 404
    METHOD_NOT_ALLOWED = 405
    PROXY_AUTHENTICATION_REQUIRED = 407
    REQUEST_TIMEOUT = 408
    REQUEST_ENTITY_TOO_LARGE = 413
    REQUEST_URI_TOO_LONG = 414
    UNSUPPORTED_MEDIA_TYPE = 415
    UNSUPPORTED_URI_SCHEME = 416
    BAD_EXTENSION = 420
    EXTENSION_REQUIRED = 421
    INTERVAL_TOO_BRIEF = 423
    FLOW_FAILED = 430
    FIRST_HOP_LACKS_OUTBOUND_SUPPORT = 439
    MAX_BREADTH_EXCEEDED = 440
    TEMPORARILY_UNAVAILABLE = 480
    CALL_OR_TRANSACTION_DOES_NOT_EXIST = 481
    LOOP_DETECTED = 482
    TOO_MANY_HOPS = 483
    ADDRESS_INCOMPLETE = 484
    BUSY_HERE = 486
    REQUEST_TERMINATED = 487
    SERVER_INTERNAL_ERROR = 500
    NOT_IMPLEMENTED = 501
    BAD_GATEWAY = 502
    SERVICE_UNAVAILABLE = 503
    SERVER_TIMEOUT = 504
    VERSION_NOT_SUPPORTED = 505
    MESSAGE_TOO_LARGE = 513
    PUSH_NOTIFICATION_SERVICE_NOT_SUPPORTED = 555
    BUSY_EVERYWHERE = 600
    DECLINE = 603

    @property
    def phrase(self) -> str:
        """The reason phrase of the RFC that defines this code."""
        return PHRASES[self]


PHRASES: dict[int, str] = {
    status: {
        Status.OK: "OK",
        Status.REQUEST_URI_TOO_LONG: "Request-URI Too Long",
        Status.UNSUPPORTED_URI_SCHEME: "Unsupported URI Scheme",
        Status.CALL_OR_TRANSACTION_DOES_NOT_EXIST: "Call/Transaction Does Not Exist",
        Status.MAX_BREADTH_EXCEEDED: "Max-Breadth Exceeded",
        Status.SERVER_TIMEOUT: "Server Time-out",
    }.get(status, status.name.replace("_", " ").title())
    for status in Status
}
