"""What is sent to Redis: commands, scripts, transactions, and who waits for the replies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from hiredis import ReplyError

from sipush.location.redis_script import Script

MAX_TRIES = 100
"""Of a transaction, when others keep changing what it goes by: each time within the millisecond.
Ten were too few for one in a hundred where three nodes did nothing but register six users."""

_SIZES: Final = [b"\r\n$%d\r\n" % size for size in range(2048)]
"What stands before an argument, by its length."
_COUNTS: Final = [b"*%d" % count for count in range(64)]
"What a command begins with, by the number of its arguments."


def pack(args: list[bytes]) -> bytes:
    """A command as RESP has it. hiredis formats each length anew: three times as long for many."""
    count = len(args)
    parts = [_COUNTS[count] if count < 64 else b"*%d" % count]
    for arg in args:
        size = len(arg)
        parts.append(_SIZES[size] if size < 2048 else b"\r\n$%d\r\n" % size)
        parts.append(arg)
    parts.append(b"\r\n")
    return b"".join(parts)


class Waiting:
    """What is sent as one, and who waits for its replies."""

    __slots__ = ("futures", "kind", "many", "replies", "written")

    def __init__(
        self, kind: object, *, many: bool, written: Callable[[], None] | None = None
    ) -> None:
        self.kind = kind
        "Others of this kind may join, if it takes many."
        self.many = many
        self.replies = 1
        "How many come."
        self.futures: list[asyncio.Future[Any]] = []
        self.written = written

    def packed(self) -> bytes:
        """As it is sent."""
        raise NotImplementedError

    def restart(self) -> None:
        """The connection was lost before all was answered."""

    def error(self, replies: list[Any]) -> ReplyError | None:
        """Why nothing comes of it."""
        return replies[0] if isinstance(replies[0], ReplyError) else None

    def answered(self, replies: list[Any]) -> list[Any] | None:
        """What those who wait are told; None when it has to be sent once more."""
        raise NotImplementedError

    def tell_written(self) -> None:
        """That it is out of our hands."""
        if self.written is not None:
            written, self.written = self.written, None
            written()


class Command(Waiting):
    """A command, or a script's keys and arguments.

    Of a script that takes ``many``, the keys and arguments of each who waits.
    """

    __slots__ = ("args", "script")

    def __init__(
        self,
        args: tuple[bytes, ...],
        script: Script | None,
        future: asyncio.Future[Any],
        written: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(script, many=script is not None and script.many, written=written)
        self.script = script
        self.args = [args]
        self.futures.append(future)

    def packed(self) -> bytes:
        """As it is sent, a script by its digest."""
        script = self.script
        if script is None:
            return pack(list(self.args[0]))
        sent = [b"EVALSHA", script.sha, b"%d" % (script.keys * len(self.args))]
        for args in self.args:
            sent += args[: script.keys]
        for args in self.args:
            if script.many:
                sent.append(b"%d" % (len(args) - script.keys))
            sent += args[script.keys :]
        return pack(sent)

    def answered(self, replies: list[Any]) -> list[Any] | None:
        """The reply, or what the script returned for each."""
        (reply,) = replies
        if self.many:
            return list(reply)
        if reply:
            self.tell_written()
        return replies


class Transaction(Waiting):
    """Hashes are read and then, unless somebody has changed one of them since, written.

    It goes in two steps, each in a pipeline of its own: WATCH and what is read; then MULTI, what is
    written, and EXEC, which ends the watching. So a connection has one at a time.
    """

    __slots__ = ("_exec", "_tries", "_written", "keys")

    def __init__(self) -> None:
        super().__init__(type(self), many=True)
        self.keys: list[bytes] = []
        "Of the hashes."
        self._written: bytes | None = None
        "The second step, when it is due."
        self._exec = 0
        "The place of the reply to its EXEC."
        self._tries = 0

    def watch(self, future: asyncio.Future[Any], key: bytes) -> None:
        """One more who waits, and the hash that it is about."""
        self.keys.append(key)
        self.futures.append(future)
        self.replies += 2

    def packed(self) -> bytes:
        """The step that is due."""
        if self._written is not None:
            return self._written
        parts = [pack([b"WATCH", *self.keys])]
        for key in self.keys:
            parts.append(pack([b"HGETALL", key]))
            parts.append(pack([b"PTTL", key]))
        return b"".join(parts)

    def restart(self) -> None:
        """Read again; a new connection watches nothing."""
        self.kind, self._written, self.replies = type(self), None, 1 + 2 * len(self.keys)

    def error(self, replies: list[Any]) -> ReplyError | None:
        """Why nothing comes of it."""
        if self._written is None:
            return super().error(replies)
        if not any(isinstance(reply, ReplyError) for reply in replies[self._exec :]):
            return None
        # What EXEC says is only that there was an error before it.
        errors = [reply for reply in replies if isinstance(reply, ReplyError)]
        return errors[0]

    def answered(self, replies: list[Any]) -> list[Any] | None:
        """What those who wait are told; None while there is a step to take."""
        if self._written is None:
            writes, then = self.writes(replies[1::2], replies[2::2])
            self._written = b"".join([pack([b"MULTI"]), *writes, pack([b"EXEC"]), *then])
            self.kind, self._exec = None, 1 + len(writes)
            self.replies = self._exec + 1 + len(then)
            return None
        executed = replies[self._exec]
        if executed is not None:
            return self.done(executed)
        self._tries += 1
        if self._tries == MAX_TRIES:
            return [ReplyError("others keep changing the same")] * len(self.futures)
        self.restart()
        return None

    def writes(self, stored: list[Any], left: list[Any]) -> tuple[list[bytes], list[bytes]]:
        """The commands, by what each hash holds (or an error), and for how many milliseconds.

        And those that are carried out behind EXEC, whether it found everything unchanged or not.
        """
        raise NotImplementedError

    def done(self, replies: list[Any]) -> list[Any]:
        """What those who wait are told, by what the commands until EXEC returned."""
        raise NotImplementedError
