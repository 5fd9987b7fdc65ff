"""Header fields, kept as they came (RFC 3261 §7.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from sipush.sip.grammar import split_outside

#: Compact forms (§7.3.3 and the IANA registry).
COMPACT: Final = {
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
_USUAL: Final = [
    "Accept", "Accept-Encoding", "Accept-Language", "Alert-Info", "Allow", "Allow-Events",
    "Authorization", "Call-ID", "Call-Info", "Contact", "Content-Disposition", "Content-Encoding",
    "Content-Length", "Content-Type", "CSeq", "Date", "Diversion", "Event", "Expires",
    "Feature-Caps", "From", "History-Info", "Max-Breadth", "Max-Forwards", "MIME-Version",
    "Min-Expires", "Min-SE", "Organization", "P-Access-Network-Info", "P-Asserted-Identity",
    "P-Preferred-Identity", "Path", "PortSIP-Push", "Priority", "Privacy", "Proxy-Authenticate",
    "Proxy-Authorization", "Proxy-Require", "RAck", "Reason", "Record-Route", "Refer-To",
    "Referred-By", "Replaces", "Require", "Retry-After", "Route", "RSeq", "Server",
    "Service-Route", "Session-Expires", "Subject", "Subscription-State", "Supported", "Timestamp",
    "To", "Unsupported", "User-Agent", "Via", "Warning", "WWW-Authenticate", "X-P-Push", "X-Push",
    "X-Push-Id",
]
# fmt: on

#: The canonical name of each spelling that is usual on the wire: one look-up instead of a parse.
#: A comprehension: mypyc makes of larger literals tables whose look-ups compare by a call.
CANONICAL: Final = {
    spelling: name
    for names in (COMPACT, {name: name.lower() for name in _USUAL})
    for short, name in names.items()
    for spelling in (short, short.lower())
}


def canonical_name(name: str) -> str:
    """The lower-case long form of a header field name."""
    name = name.lower()
    return COMPACT.get(name, name)


def field_value(line: str) -> str:
    """The value of a header line: after the colon, unfolded (§7.3.1), stripped."""
    value = line[line.find(":") + 1 :]
    if "\n" in value:
        value = " ".join([part.strip(" \t") for part in value.split("\r\n")])
    return value.strip(" \t")


class Headers:
    """Header fields in order. Lines that nobody changes leave as they came, byte for byte.

    Names given to the methods are lower-case long forms (``call-id``, never ``i``).
    """

    __slots__ = ("_first", "_repeated", "fields")

    def __init__(self, fields: list[tuple[str, str]] | None = None) -> None:
        """``fields`` is the message's own from now on."""
        self.fields: list[tuple[str, str]] = [] if fields is None else fields
        """(canonical name, line as it came without its last CRLF; folds inside)

        To be read: the methods edit it, and keep ``first`` in step."""
        self._first: dict[str, str] = {}
        "Empty until somebody asks: nobody does of a response that we make."
        self._repeated: tuple[str, ...] = ()

    @property
    def first(self) -> dict[str, str]:
        """The first line of each name, to be read."""
        return self._first or self._find_first()

    @property
    def repeated(self) -> tuple[str, ...]:
        """The names that more than one line may have, each of them once or more."""
        if not self._first:
            self._find_first()
        return self._repeated

    def _find_first(self) -> dict[str, str]:
        first: dict[str, str] = {}
        repeated: list[str] = []
        for name, line in self.fields:
            if first.setdefault(name, line) is not line:
                repeated.append(name)
        self._first, self._repeated = first, tuple(repeated)
        return first

    def copy(self) -> Headers:
        """A shallow copy: its own list of the same lines."""
        other = Headers(self.fields.copy())
        other._first, other._repeated = self._first.copy(), self._repeated
        return other

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self.fields)

    def __contains__(self, name: str) -> bool:
        return name in (self._first or self._find_first())

    def get(self, name: str) -> str | None:
        """The value of the first line with this name, or None."""
        line = (self._first or self._find_first()).get(name)
        if line is None:
            return None
        return field_value(line) if "\n" in line else line[line.find(":") + 1 :].strip(" \t")

    def get_all(self, name: str) -> list[str]:
        """The values of all lines with this name, not split at commas."""
        return [field_value(line) for _, line in self.lines(name)]

    def values(self, name: str) -> list[str]:
        """The non-empty elements of a comma-separated header over all its lines, in order.

        Not for headers whose grammar has bare commas (Authorization, Date, …).
        """
        if name not in self.repeated:  # as nearly always, and most of these have one element
            value = (self.get(name) or "").strip()
            if "," not in value:
                return [value] if value else []
        return [part for value in self.get_all(name) for part in split_outside(value, ",") if part]

    def lines(self, name: str) -> list[tuple[str, str]]:
        """The fields with this name, to be carried into another message unchanged."""
        first = self._first
        if not first or name in self._repeated:
            return [field for field in self.fields if field[0] == name]
        line = first.get(name)
        return [] if line is None else [(name, line)]

    def append(self, name: str, value: str) -> None:
        """Add a line at the end. ``name`` may be written in any case, as it should appear."""
        canonical, line = CANONICAL.get(name) or canonical_name(name), f"{name}: {value}"
        self.fields.append((canonical, line))
        if self._first and self._first.setdefault(canonical, line) is not line:
            self._repeated += (canonical,)

    def extend(self, fields: Iterable[tuple[str, str]]) -> None:
        """Add the ``lines`` of another message at the end."""
        self.fields += fields
        self._first = {}

    def prepend(self, name: str, value: str) -> None:
        """Add a line before the first with the same name, else at the top."""
        canonical, line = CANONICAL.get(name) or canonical_name(name), f"{name}: {value}"
        index = self._index(canonical)
        self.fields.insert(max(index, 0), (canonical, line))
        if self._first:
            self._first[canonical] = line
            if index >= 0:
                self._repeated += (canonical,)

    def remove(self, name: str) -> None:
        """Remove every line with this name."""
        first = self._first or self._find_first()
        if name in first:
            self.fields = [field for field in self.fields if field[0] != name]
            del first[name]

    def set(self, name: str, value: str) -> None:
        """Replace every line with this name by one, where the first stood (or at the end)."""
        canonical, line = CANONICAL.get(name) or canonical_name(name), f"{name}: {value}"
        fields, first = self.fields, self._first or self._find_first()
        if canonical not in first:
            fields.append((canonical, line))
        else:
            index = self._index(canonical)
            fields[index] = (canonical, line)
            if canonical in self._repeated:
                fields[index + 1 :] = [f for f in fields[index + 1 :] if f[0] != canonical]
        first[canonical] = line

    def _index(self, name: str) -> int:
        """Where the first line with this name stands; -1 when there is none."""
        for index, field in enumerate(self.fields):
            if field[0] == name:
                return index
        return -1

    def pop_first_value(self, name: str, written: str) -> str | None:
        """Remove and return the first element of a comma-separated header (a Via, a Route).

        ``written`` is the name to write if other elements remain on that line.
        """
        line = self.first.get(name)
        if line is None:
            return None
        if "," not in line:
            self.replace_first_line(name, None)
            return field_value(line)
        first, *rest = split_outside(field_value(line), ",")
        self.replace_first_line(name, f"{written}: {', '.join(rest)}" if rest else None)
        return first

    def remove_first_value(self, name: str, written: str) -> None:
        """As ``pop_first_value``, of a header that there is, for nobody who wants to read it."""
        if "," in self.first[name]:
            self.pop_first_value(name, written)
        else:
            self.replace_first_line(name, None)

    def replace_first_line(self, name: str, line: str | None) -> None:
        """Put ``line`` in the place of the first of this name, which there is; None: remove it."""
        index = self._index(name)
        if line is None:
            del self.fields[index]
            self._first = {}
        else:
            self.fields[index] = (name, line)
            self._first[name] = line
