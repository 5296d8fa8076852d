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
from triton_vllm.protocol.synonyms import hint


@dataclasses.dataclass(frozen=True, slots=True)
class Parameter:
    """How a client's value for one parameter is checked.

    ``types`` are the JSON types that it takes. ``keys`` are those of an object with fixed keys,
    such as ``structured_outputs``; empty for other parameters. ``struct`` is the class that such an
    object becomes where pydantic does not know how: a msgspec Struct, as ``late_chunking_params``.
    """

    validate: Callable[[Any], Any]
    types: frozenset[type]
    keys: frozenset[str]
    struct: Any = None

    @classmethod
    def of(cls, hint: Any) -> Parameter:
        """Return the check for a value of this type."""
        from pydantic import ConfigDict, TypeAdapter

        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        hints = (hint, *typing.get_args(hint))
        classes = [c for c in hints if dataclasses.is_dataclass(c)]
        keys = {f.name for c in classes for f in dataclasses.fields(c) if f.name[0] != "_"}
        structs = [c for c in hints if hasattr(c, "__struct_fields__")]
        return cls(
            TypeAdapter(hint, config=config).validate_python,
            frozenset(json_types(hint)),
            frozenset(keys.union(*(c.__struct_fields__ for c in structs))),
            structs[0] if structs else None,
        )


class ParameterValidator:
    """The parameters that a client may give, by name and type hint, and the check of each."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._parameters = {name: Parameter.of(hint) for name, hint in hints.items()}

    @property
    def names(self) -> Collection[str]:
        """The names of all of them."""
        return self._parameters.keys()

    def unpacked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return request parameters, with the lists that came as JSON in strings as lists.

        Triton's request parameters are no lists. Where a parameter takes a string or a list, a
        string is a list only if it holds one that the parameter takes, with at least one element.
        """
        return {name: self._unpacked(name, value) for name, value in given.items()}

    def _unpacked(self, name: str, value: Any) -> Any:
        parameter = self._parameters.get(name)
        if (
            parameter is None
            or not parameter.types >= {str, list}
            or not isinstance(value, str)
            or not value.startswith("[")
        ):
            return value
        try:
            unpacked = json.loads(value)
            parameter.validate(unpacked)
        except (ValueError, RecursionError):  # pydantic's error is a ValueError, too
            return value
        _check_unicode(unpacked, f'parameters: "{name}"')
        return unpacked or value

    def check(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the values of ``given``, converted; ``null`` is left out.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        return {
            name: self._check(name, value, where)
            for name, value in given.items()
            if value is not None or name not in self._parameters
        }

    def _check(self, name: str, value: Any, where: str) -> Any:
        parameter = self._parameters.get(name)
        if parameter is None:
            raise RequestError(f'{where}: unknown key "{name}"{hint(name, self._parameters)}')
        where_exactly = f'{where}: "{name}"'
        if isinstance(value, bool) and bool not in parameter.types:  # to pydantic, true is also 1
            raise RequestError(f"{where_exactly}: must not be a boolean, got {_shown(value)}")
        if isinstance(value, dict) and parameter.keys:
            value = _known_keys(value, parameter.keys, where_exactly)
        if isinstance(value, dict) and parameter.struct is not None:
            members = ParameterValidator(typing.get_type_hints(parameter.struct))
            value = members.check(value, where_exactly)
        try:
            if isinstance(value, dict) and parameter.struct is not None:
                value = parameter.struct(**value)
            checked = parameter.validate(value)
        except Exception as error:
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                return self._check(name, load_json(value, where_exactly), where)
            reason = _reason(error, parameter)
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


def _reason(error: Exception, parameter: Parameter) -> str:
    """Return pydantic's first complaint in its own words, or the error's text."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error)
    complaint = error.errors(include_url=False)[0]
    within = f'"{complaint["loc"][0]}": ' if parameter.keys and complaint["loc"] else ""
    return f"{within}{complaint['msg']}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
