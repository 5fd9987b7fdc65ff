"""What is wrong with a configuration, in words an operator can act on."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails, PydanticCustomError

Place = tuple[str | int, ...]
"Keys and list indexes from the top of the file."

_SECRET = {"ha1_md5", "ha1_sha256", "url"}
"Keys whose value is not repeated: it may hold a secret."
_FILE_KEY = re.compile(r"_file$|^certificate$|^private_key$")
_PATH = re.compile(r"\.{0,2}/\S*|\S*\.[A-Za-z0-9]{1,8}")
"What is surely a path: the secret itself may stand where its file belongs."
_KEY_ITSELF = "[key]"
"Where pydantic finds fault with the key of a table and not with its value."
_DOTTED = {"apps": "an app-id", "domains": "a domain"}
"Tables whose keys are names with dots, each of which begins a table of its own without quotes."
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def refuse(text: str) -> NoReturn:
    """Say from inside a validator what is wrong, in the words the operator will read."""
    raise PydanticCustomError("problem", "{text}", {"text": text})


def describe(errors: Iterable[ErrorDetails], schema: type[BaseModel]) -> list[str]:
    """One line for each problem: dotted key, what is wrong, what is allowed."""
    return [f"{dotted(error['loc'])}: {_sentence(error, schema)}" for error in errors]


def dotted(place: Place) -> str:
    """``listen[0].port``, ``users."101@example.com".hold``."""
    text = ""
    for part in place:
        if part == _KEY_ITSELF:
            continue
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += "." + (part if _BARE_KEY.fullmatch(part) else f'"{part}"')
    return text.lstrip(".")


def _sentence(error: ErrorDetails, schema: type[BaseModel]) -> str:
    place = error["loc"]
    if error["type"] == "problem":
        return error["msg"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(place, error["input"], schema)
    if error["type"] == "missing":
        return "is missing and has no default"
    if error["type"] in ("too_short", "string_too_short"):
        return "is empty (allowed: at least one)"
    allowed = re.sub(r"^Input should be ", "", error["msg"]).replace("'", '"')
    if error["type"] in ("model_type", "dict_type"):
        allowed = "a table"
    if error["type"] == "list_type":
        allowed = _a_list(place, error["input"], schema)
    if place and _may_be_secret(str(place[-1]), error["input"]):
        return f"cannot be used (allowed: {allowed})"
    return f"is {toml(error['input'])} (allowed: {allowed})"


def _may_be_secret(key: str, value: object) -> bool:
    return key in _SECRET or bool(_FILE_KEY.search(key) and not _PATH.fullmatch(str(value)))


def _a_list(place: Place, value: object, schema: type[BaseModel]) -> str:
    item = bare(get_args(model_at(place, schema))[0])
    if _is_model(item):
        return "a list of tables"
    return f"[{toml(value)}]" if isinstance(value, str) else "a list"


def _unknown_key(place: Place, value: object, schema: type[BaseModel]) -> str:
    known = sorted(model_at(place[:-1], schema).model_fields)
    near = get_close_matches(str(place[-1]), known, n=1)
    if near:
        return f"unknown key (did you mean {near[0]}?)"
    allowed = ", ".join(known)
    if isinstance(value, dict) and len(place) == 3 and place[0] in _DOTTED:
        allowed += f"; {_DOTTED[place[0]]} with dots needs quotes"
    return f"unknown key (allowed: {allowed})"


def model_at(place: Sequence[str | int], schema: type[BaseModel]) -> type[BaseModel]:
    """The section that ``place`` leads to."""
    kind: Any = schema
    for part in place:
        inside = kind.model_fields[part].annotation if _is_model(kind) else get_args(kind)[-1]
        kind = bare(inside)
    section: type[BaseModel] = kind
    return section


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def bare(kind: Any) -> Any:
    """Without ``Annotated`` and ``| None``."""
    if get_origin(kind) is Annotated:
        return bare(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return next(each for each in get_args(kind) if each is not types.NoneType)
    return kind


def toml(value: object) -> str:
    """A value as the operator has written it, or what it is."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else str(value)
