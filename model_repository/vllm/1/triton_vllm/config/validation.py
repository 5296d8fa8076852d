"""Checks a JSON object of settings against a dataclass; an error is one line.

pydantic does the checking. It is imported late: Triton loads the model once more, in a separate,
short-lived process, to complete config.pbtxt, and importing pydantic takes 0.2 s.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any, TypeVar

from triton_vllm.errors import SettingsError, did_you_mean

T = TypeVar("T")

# ``__pydantic_config__`` of each such dataclass; ``setting`` makes its fields strict.
CONFIG = {"extra": "forbid", "allow_inf_nan": False}
_TYPES = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}


def setting(default: Any, **limits: Any) -> Any:
    """Return a dataclass field. ``limits`` are pydantic's, such as ``ge`` and ``le``.

    It is strict: booleans and strings are no numbers.
    """
    return field(default=default, metadata={"strict": True, **limits})


def validate(kind: type[T], given: object, where: str, name: str) -> T:
    """Return ``given`` as the dataclass ``kind``.

    ``where`` is the file, ``name`` the key of the object in it. Raises SettingsError with the
    first mistake: the key, what is allowed and what came.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        mistake: Mapping[str, Any] = error.errors(include_url=False)[0]
        raise SettingsError(f"{where}: {_sentence(kind, mistake, name)}") from None


def allowed(kind: type, key: str) -> str:
    """Return what the setting ``key`` of ``kind`` may be: "an integer from 0 to 64"."""
    hint = typing.get_type_hints(kind)[key]
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(filter(None, typing.get_args(hint)))}"
    if _nested(kind, key):
        return "an object"
    limits = next(f for f in fields(kind) if f.name == key).metadata
    text = _TYPES.get(hint, "a string or an array of strings")
    if "ge" in limits:
        return f"{text} from {limits['ge']} to {limits['le']}"
    return f"{text} that is not empty" if limits.get("min_length") else text


def _nested(kind: type, key: str) -> type | None:
    hints = typing.get_args(typing.get_type_hints(kind)[key])
    return next((hint for hint in hints if isinstance(hint, type) and is_dataclass(hint)), None)


def _sentence(kind: type, mistake: Mapping[str, Any], name: str) -> str:
    """Return pydantic's mistake in our words."""
    *parents, key = mistake["loc"] or ("",)
    while parents and (inner := _nested(kind, parents[0])):
        kind, name = inner, f"{name}.{parents.pop(0)}"
    key = parents[0] if parents else key  # the place of a value in an array is of no interest
    if mistake["type"] == "unexpected_keyword_argument":
        keys = [f.name for f in fields(kind)]
        nearest = did_you_mean(key, keys) or f", allowed: {', '.join(keys)}"
        return f'"{name}": unknown key "{key}"{nearest}'
    if mistake["type"] == "value_error":  # of __post_init__, which has found it
        return f'"{name}.{key}": {mistake["ctx"]["error"]}'
    got = "but it is missing" if mistake["type"] == "missing" else f"got {_json(mistake['input'])}"
    if not key:
        return f'"{name}" must be an object, {got}'
    return f'"{name}.{key}" must be {allowed(kind, key)}, {got}'


def _json(value: object) -> str:
    return json.dumps(value, default=repr, ensure_ascii=False)
