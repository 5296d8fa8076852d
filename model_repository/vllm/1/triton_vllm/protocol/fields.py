"""Check a client's JSON values against type hints, by name.

pydantic converts ("0.1", "true", a list in a string) and checks types.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from triton_vllm.config.arguments import json_types
from triton_vllm.errors import RequestError, did_you_mean, one_line


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """How a client's value for one parameter is checked.

    ``keys`` are those of an object with fixed keys, such as ``structured_outputs``; empty for
    other parameters.
    """

    validate: Callable[[Any], Any]
    takes_booleans: bool
    keys: frozenset[str]

    @classmethod
    def of(cls, hint: Any) -> Parameter:
        """Return the check for a value of this type."""
        from pydantic import ConfigDict, TypeAdapter

        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        classes = [c for c in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(c)]
        keys = {f.name for c in classes for f in dataclasses.fields(c) if f.name[0] != "_"}
        return cls(
            TypeAdapter(hint, config=config).validate_python,
            bool in json_types(hint),
            frozenset(keys),
        )


class ParameterValidator:
    """The parameters that a client may give, by name and type hint, and the check of each."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._fields = {name: Parameter.of(hint) for name, hint in hints.items()}

    @property
    def names(self) -> Collection[str]:
        """The names of all of them."""
        return self._fields.keys()

    def check(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the values of ``given``, converted; ``null`` is left out.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        return {
            name: self._check(name, value, where)
            for name, value in given.items()
            if value is not None or name not in self._fields
        }

    def _check(self, name: str, value: Any, where: str) -> Any:
        field = self._fields.get(name)
        if field is None:
            raise RequestError(f'{where}: unknown key "{name}"{did_you_mean(name, self._fields)}')
        where_exactly = f'{where}: "{name}"'
        if isinstance(value, bool) and not field.takes_booleans:  # to pydantic, true is also 1
            raise RequestError(f"{where_exactly}: must not be a boolean, got {_shown(value)}")
        if isinstance(value, dict) and field.keys:
            value = _known_keys(value, field.keys, where_exactly)
        try:
            checked = field.validate(value)
        except Exception as error:
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                return self._check(name, load_json(value, where_exactly), where)
            reason = _reason(error, field)
            raise RequestError(f"{where_exactly}: {reason}, got {_shown(value)}") from None
        if isinstance(checked, int) and not -(2**63) <= checked < 2**63:  # as the engine needs it
            raise RequestError(f"{where_exactly}: must fit into 64 bits, got {_shown(value)}")
        return checked


def _known_keys(value: dict[str, Any], keys: Collection[str], where: str) -> dict[str, Any]:
    """Return an object without vLLM's private keys, which come along with a whole dataclass.

    pydantic would ignore an unknown key, and the constraint with it.
    """
    for key in value:
        if key not in keys and not key.startswith("_"):
            nearest = did_you_mean(key, keys) or f", allowed: {', '.join(sorted(keys))}"
            raise RequestError(f'{where}: unknown key "{key}"{nearest}')
    return {key: each for key, each in value.items() if key in keys}


def load_json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``. Raises RequestError saying where it is malformed."""
    value = _parse_json(text, where)
    if not isinstance(value, dict):
        raise RequestError(f"{where}: must be a JSON object, got {_shown(value)}")
    for key, each in value.items():
        _check_unicode(each, f'{where}: "{key}"')
    return value


def load_json(text: str, where: str) -> Any:
    """Return the JSON value in ``text``. Raises RequestError saying where it is malformed."""
    value = _parse_json(text, where)
    _check_unicode(value, where)
    return value


def _check_unicode(value: Any, where: str) -> None:
    """Raise RequestError for half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.

    Neither a tokenizer nor Triton takes it.
    """
    if isinstance(value, str | list | dict):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise RequestError(f"{where}: {half} is half of a surrogate pair") from None
        except RecursionError as error:
            raise RequestError(f"{where}: {one_line(error)}") from None


def _parse_json(text: str, where: str) -> Any:
    """Return the JSON value in ``text``; NaN and Infinity are not JSON."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{where}: not JSON: {one_line(error)}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")


def _reason(error: Exception, field: Parameter) -> str:
    """Return pydantic's first complaint in its own words, or the error's text."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error)
    complaint = error.errors(include_url=False)[0]
    within = f'"{complaint["loc"][0]}": ' if field.keys and complaint["loc"] else ""
    return f"{within}{complaint['msg']}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
