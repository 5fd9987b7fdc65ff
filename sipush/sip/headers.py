"""Header fields, kept as they came (RFC 3261 §7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sipush.sip.grammar import split_outside

#: Compact forms (§7.3.3 and the IANA registry).
COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "d": "request-disposition",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "j": "reject-contact",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "n": "identity-info",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
    "y": "identity",
}

# fmt: off
_USUAL = [
    "Accept", "Allow", "Authorization", "Call-ID", "Contact", "Content-Length", "Content-Type",
    "CSeq", "Date", "Event", "Expires", "From", "Max-Breadth", "Max-Forwards", "Min-SE", "Path",
    "Proxy-Authorization", "Proxy-Require", "Reason", "Record-Route", "Require", "Route", "RSeq",
    "Server", "Session-Expires", "Subject", "Supported", "Timestamp", "To", "User-Agent", "Via",
    "Warning", "WWW-Authenticate", "X-Push", "X-Push-Id", "P-Asserted-Identity",
]
# fmt: on

#: The canonical name of each spelling that is usual on the wire: one look-up instead of a parse.
CANONICAL = COMPACT | {
    spelling: name.lower() for name in _USUAL for spelling in (name, name.lower())
}


def canonical_name(name: str) -> str:
    """The lower-case long form of a header field name."""
    name = name.lower()
    return COMPACT.get(name, name)


def field_value(line: str) -> str:
    """The value of a header line: after the colon, unfolded (§7.3.1), stripped."""
    value = line[line.index(":") + 1 :]
    if "\n" in value:
        value = " ".join(part.strip(" \t") for part in value.split("\r\n"))
    return value.strip(" \t")


class Headers:
    """Header fields in order. Lines that nobody changes leave as they came, byte for byte.

    Names given to the methods are lower-case long forms (``call-id``, never ``i``).
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self.fields: list[tuple[str, str]] = list(fields)
        "(canonical name, line as it came without its last CRLF; folds inside)"

    def copy(self) -> Headers:
        """A shallow copy: its own list of the same lines."""
        return Headers(self.fields)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)

    def __contains__(self, name: str) -> bool:
        return self._index(name) >= 0

    def get(self, name: str) -> str | None:
        """The value of the first line with this name, or None."""
        for canonical, line in self.fields:
            if canonical == name:
                return field_value(line)
        return None

    def get_all(self, name: str) -> list[str]:
        """The values of all lines with this name, not split at commas."""
        return [field_value(line) for canonical, line in self.fields if canonical == name]

    def values(self, name: str) -> list[str]:
        """The non-empty elements of a comma-separated header over all its lines, in order.

        Not for headers whose grammar has bare commas (Authorization, Date, …).
        """
        return [part for value in self.get_all(name) for part in split_outside(value, ",") if part]

    def lines(self, name: str) -> list[tuple[str, str]]:
        """The fields with this name, to be carried into another message unchanged."""
        return [field for field in self.fields if field[0] == name]

    def append(self, name: str, value: str) -> None:
        """Add a line at the end. ``name`` may be written in any case, as it should appear."""
        self.fields.append((CANONICAL.get(name) or canonical_name(name), f"{name}: {value}"))

    def prepend(self, name: str, value: str) -> None:
        """Add a line before the first with the same name, else at the top."""
        canonical = canonical_name(name)
        self.fields.insert(max(self._index(canonical), 0), (canonical, f"{name}: {value}"))

    def remove(self, name: str) -> None:
        """Remove every line with this name."""
        self.fields = [field for field in self.fields if field[0] != name]

    def set(self, name: str, value: str) -> None:
        """Replace every line with this name by one, where the first stood (or at the end)."""
        canonical = canonical_name(name)
        new = (canonical, f"{name}: {value}")
        index = self._index(canonical)
        if index < 0:
            self.fields.append(new)
            return
        self.fields[index] = new
        self.fields[index + 1 :] = [f for f in self.fields[index + 1 :] if f[0] != canonical]

    def _index(self, name: str) -> int:
        """Where the first line with this name stands, or -1. A plain loop: asked all the time."""
        for i, (canonical, _) in enumerate(self.fields):
            if canonical == name:
                return i
        return -1

    def pop_first_value(self, name: str, written: str) -> str | None:
        """Remove and return the first element of a comma-separated header (a Via, a Route).

        ``written`` is the name to write if other elements remain on that line.
        """
        for i, (canonical, line) in enumerate(self.fields):
            if canonical == name:
                first, *rest = split_outside(field_value(line), ",")
                if rest:
                    self.fields[i] = (name, f"{written}: {', '.join(rest)}")
                else:
                    del self.fields[i]
                return first
        return None

    def replace_first_value(self, name: str, written: str, value: str) -> None:
        """Replace the first element of a comma-separated header, the others untouched."""
        for i, (canonical, line) in enumerate(self.fields):
            if canonical == name:
                rest = split_outside(field_value(line), ",")[1:]
                self.fields[i] = (name, f"{written}: {', '.join([value, *rest])}")
                return
