"""The keys of the configuration, named as the documents name them."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sipush.config import Config
from sipush.config_problems import bare


def keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value: ``wake.hold``, ``listen[].port``, ``apps.*.apns.key_id``."""
    for name, field in section.model_fields.items():
        kind, mark = _item(bare(field.annotation))
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from keys(kind, f"{prefix}{name}{mark}.")
        else:
            yield f"{prefix}{name}", field


def _item(kind: Any) -> tuple[Any, str]:
    mark = {list: "[]", dict: ".*"}.get(get_origin(kind), "")
    return (bare(get_args(kind)[-1]), mark) if mark else (kind, mark)


def default(field: FieldInfo) -> Any:
    """As TOML would give it, or None where there is no default to write down."""
    value = None if field.is_required() else field.get_default()
    plain = value is None or isinstance(value, (bool, int, float, list, dict))
    return value if plain else str(value)
