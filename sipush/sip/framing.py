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
        self._buffer = bytearray()
        self._searched = 0
        "How far ``_buffer`` holds no end of headers."
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
        self._buffer += data
        try:
            while (frame := self._next()) is not None:
                frames.append(frame)
        except MessageError as error:
            self.lost = True
            self._buffer.clear()
            frames.append(error)
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
        while self._searched == 0 and self._buffer.startswith(b"\r\n"):
            if self._buffer.startswith(b"\r\n\r\n"):
                del self._buffer[:4]
                return True
            if b"\r\n\r\n".startswith(self._buffer):
                break  # a pong, or half a ping: the next bytes tell
            del self._buffer[:2]
        return False

    def _take_head(self) -> bytes | None:
        buffer = self._buffer
        if b"\r\n\r\n".startswith(buffer):
            return None
        end = buffer.find(b"\r\n\r\n", max(0, self._searched - 3))
        self._searched = len(buffer)
        if (end if end >= 0 else len(buffer)) > self._max_header_size:
            start = bytes(buffer[: self._max_header_size])
            raise MessageError("Header Too Large", Status.MESSAGE_TOO_LARGE, _readable(start))
        if end < 0:
            return None
        head = bytes(buffer[:end])
        del buffer[: end + 4]
        self._searched = 0
        return head

    def _begin(self, head: bytes) -> None:
        try:
            message = parse_head(head)
        except MessageError as error:
            if not isinstance(error.message, Request):
                raise
            message, self._fault = error.message, error
        length = content_length(message)
        if length is None:
            raise MessageError("Missing Content-Length", message=message)
        if len(head) + 4 + length > self._max_message_size:
            raise MessageError("Message Too Large", Status.MESSAGE_TOO_LARGE, message)
        self._message, self._body_size = message, length

    def _finish(self) -> Frame | None:
        message = self._message
        if message is None or len(self._buffer) < self._body_size:
            return None
        message.body = bytes(self._buffer[: self._body_size])
        del self._buffer[: self._body_size]
        fault, self._message, self._fault = self._fault, None, None
        return fault or message


def _readable(start: bytes) -> Message | None:
    """The whole lines of a head that is too large, so that it can be answered."""
    try:
        return parse_head(start.rpartition(b"\r\n")[0])
    except MessageError as error:
        return error.message
