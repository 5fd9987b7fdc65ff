"""Messages and keep-alives out of a byte stream (RFC 3261 §18.3, RFC 5626 §3.5.1)."""

from __future__ import annotations

from enum import Enum

from sipush.errors import MessageError
from sipush.sip.message import Message, Request, Response, content_length, parse_head
from sipush.sip.status import Status


class KeepAlive(Enum):
    """What may stand between messages."""

    PING = "ping"
    "CRLFCRLF: to be answered with CRLF at once."


Frame = Request | Response | KeepAlive | MessageError
"""A MessageError is a message that could not be read; the stream goes on unless ``lost``."""


class StreamFramer:
    """Cuts one direction of a connection into messages."""

    def __init__(self, max_message_size: int = 65_535, max_header_size: int = 16_384) -> None:
        self.lost = False
        """Framing is lost: the last frame was a MessageError, nothing more will come, and the
        connection must be closed once that error is answered."""
        self._max_message_size = max_message_size
        self._max_header_size = max_header_size
        self._buffer = b""
        self._start = 0
        "Where in ``_buffer`` what has not been taken begins."
        self._searched = 0
        "Up to where in ``_buffer`` no end of headers was found; 0: nobody has looked."
        self._message: Request | Response | None = None
        "Waits for its body."
        self._fault: MessageError | None = None
        "What is wrong with ``_message``, to be told once its body has been skipped."
        self._body_size = 0

    @property
    def is_waiting(self) -> bool:
        """Whether a message has begun whose rest has not come (a half keep-alive is none)."""
        return self._message is not None or bool(self._buffer.strip(b"\r\n"))

    def feed(self, data: bytes) -> list[Frame]:
        """Take the next bytes; returns what they complete, in order. A single CRLF is ignored."""
        frames: list[Frame] = []
        if self.lost:
            return frames
        # A segment mostly holds whole messages, and then it is not copied.
        self._buffer = self._buffer + data if self._buffer else data
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except MessageError as error:
            self.lost = True
            self._start = len(self._buffer)
            frames.append(error)
        self._buffer = self._buffer[self._start :]
        self._searched = max(0, self._searched - self._start)
        self._start = 0
        return frames

    def _next(self) -> Frame | None:
        """The next complete frame, or None. Raises MessageError when framing is lost."""
        if self._message is None:
            if self._skip_line_ends():
                return KeepAlive.PING
            head = self._take_head()
            if head is None:
                return None
            self._begin(head)
        return self._finish()

    def _skip_line_ends(self) -> bool:
        """Drop line ends before a message; True when they were a ping."""
        buffer = self._buffer
        while not self._searched and buffer.startswith(b"\r\n", self._start):
            if buffer.startswith(b"\r\n\r\n", self._start):
                self._start += 4
                return True
            if self._is_half_a_ping():
                break  # or a pong: the next bytes tell
            self._start += 2
        return False

    def _is_half_a_ping(self) -> bool:
        return b"\r\n\r\n".startswith(self._buffer[self._start : self._start + 4])

    def _take_head(self) -> bytes | None:
        buffer, start = self._buffer, self._start
        if self._is_half_a_ping():
            return None
        end = buffer.find(b"\r\n\r\n", max(start, self._searched - 3))
        self._searched = len(buffer)
        # Where nothing ends yet, three quarters of its end may be there.
        if (end if end >= 0 else len(buffer) - 3) - start > self._max_header_size:
            head = buffer[start : start + self._max_header_size]
            raise MessageError("Header Too Large", Status.MESSAGE_TOO_LARGE, _readable(head))
        if end < 0:
            return None
        self._start = end + 4
        self._searched = 0
        return buffer[start:end]

    def _begin(self, head: bytes) -> None:
        try:
            message = parse_head(head)
        except MessageError as error:
            if not isinstance(error.message, (Request, Response)):
                raise
            message, self._fault = error.message, error
        length = content_length(message)
        if length is None:
            raise MessageError("Missing Content-Length", message=message)
        if len(head) + 4 + length > self._max_message_size:
            raise MessageError("Message Too Large", Status.MESSAGE_TOO_LARGE, message)
        self._message, self._body_size = message, length

    def _finish(self) -> Frame | None:
        message, end = self._message, self._start + self._body_size
        if message is None or len(self._buffer) < end:
            return None
        message.body = self._buffer[self._start : end]
        self._start = end
        fault, self._message, self._fault = self._fault, None, None
        return fault or message


def _readable(start: bytes) -> Message | None:
    """The whole lines of a head that is too large, so that it can be answered."""
    try:
        return parse_head(start.rpartition(b"\r\n")[0])
    except MessageError as error:
        return error.message
