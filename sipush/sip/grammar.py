"""Lexical rules shared by all parsers (RFC 3261 §25.1)."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Final
from urllib.parse import unquote

#: token = 1*(alphanum / "-" / "." / "!" / "%" / "*" / "_" / "+" / "`" / "'" / "~" )
TOKEN_CHAR: Final = r"[A-Za-z0-9\-.!%*_+`'~]"
TOKEN: Final = rf"{TOKEN_CHAR}+"
is_token: Final = re.compile(TOKEN).fullmatch

#: quoted-string = SWS DQUOTE *(qdtext / quoted-pair ) DQUOTE
QUOTED_TEXT: Final = r'[^"\\]*(?:\\.[^"\\]*)*'
QUOTED_STRING: Final = rf'"{QUOTED_TEXT}"'

_QUOTED_PAIR: Final = re.compile(r"\\(.)", re.DOTALL)


def unquote_string(text: str) -> str:
    """The text inside a quoted-string, or ``text`` itself when it is not quoted."""
    if len(text) >= 2 and text[0] == '"' == text[-1]:
        text = text[1:-1]
        return _QUOTED_PAIR.sub(r"\1", text) if "\\" in text else text
    return text


def quote_string(text: str) -> str:
    """``text`` as a quoted-string. Line ends, which a header cannot carry, become spaces."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("\r", " ").replace("\n", " ") + '"'


def unescape(text: str) -> str:
    """``text`` with its ``%HH`` escapes decoded (§19.1.2), as UTF-8."""
    return unquote(text, errors="surrogateescape") if "%" in text else text


def is_ip(host: str) -> bool:
    """Whether ``host`` is an IP address (without brackets) and not a name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


#: What is skipped as a whole, or (group 1) the separator itself.
_SEPARATORS: Final = {
    separator: re.compile(
        rf'{QUOTED_STRING}?|<[^">]*(?:{QUOTED_STRING}?[^">]*)*>?|({separator})', re.DOTALL
    )
    for separator in ",;"
}


HUGE: Final = 10**10
"What a number with more than ten digits counts as."


def number(text: str) -> int | None:
    """The value of 1*DIGIT, at most ``HUGE``; None for anything else.

    ``int`` takes other digits too, and raises ValueError for more than 4,300 of them.
    """
    if not (text.isascii() and text.isdigit()):
        return None
    if len(text) > 10:
        text = text.lstrip("0") or "0"
    return int(text) if len(text) <= 10 else HUGE


def is_plain_host(text: str) -> bool:
    """Whether it is ASCII letters, digits, dots and hyphens alone; others may be hosts too."""
    return text.isascii() and text.replace(".", "").replace("-", "").isalnum()


def split_outside(text: str, separator: str) -> list[str]:
    """Split on ``separator`` where it is neither in a quoted-string nor in ``<>``; parts stripped.

    An unterminated quote or bracket runs to the end of the text.
    """
    if separator not in text:
        return [text.strip()]
    if '"' not in text and "<" not in text:
        return [part.strip() for part in text.split(separator)]
    parts = _split_outside_quotes(text, separator)
    return _split_outside_any(text, separator) if parts is None else parts


def _split_outside_any(text: str, separator: str) -> list[str]:
    parts, start = [], 0
    for match in _SEPARATORS[separator].finditer(text):
        if match.lastindex:
            parts.append(text[start : match.start()].strip())
            start = match.end()
    parts.append(text[start:].strip())
    return parts


def _split_outside_quotes(text: str, separator: str) -> list[str] | None:
    """The same where quotes alone matter and nothing in them is escaped, in a third of the time."""
    pieces = text.split('"')
    if len(pieces) % 2 == 0 or "\\" in text:
        return None
    parts, part, is_quoted = [], "", False
    for piece in pieces:
        if is_quoted:
            part += f'"{piece}"'
        elif "<" in piece:
            return None
        else:
            first, *others = piece.split(separator)
            part += first
            for other in others:
                parts.append(part.strip())
                part = other
        is_quoted = not is_quoted
    parts.append(part.strip())
    return parts


def parse_params(text: str) -> dict[str, str | None]:
    """``;name=value;flag`` as a dict: names lower-case, values as written, flags None.

    Quotes are kept (``unquote_string`` removes them). The first of two equal names wins. A leading
    ``;`` is optional, empty parts are ignored.
    """
    params: dict[str, str | None] = {}
    plain = '"' not in text and "<" not in text
    for part in text.split(";") if plain else split_outside(text, ";"):
        if not part:
            continue
        name, equals, value = part.partition("=")
        name = name.strip().lower()
        if name:
            params.setdefault(name, value.strip() if equals else None)
    return params
