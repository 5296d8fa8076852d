"""From a client's JSON object to vLLM's ``SamplingParams``.

Names and types come from vLLM's class, so every field of every supported version is there, and
nothing else is. pydantic converts ("0.1", "true", a list in a string) and checks types; the class
itself checks ranges.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from triton_vllm.config.arguments import json_types
from triton_vllm.errors import RequestError, did_you_mean, one_line
from triton_vllm.protocol.requests import EngineOptions

# Fields that are the engine's own business, or ours, or whose result has no output here.
_NOT_FOR_CLIENTS = {"output_kind", "skip_clone", "output_text_buffer_length", "extra_args"}
_NOT_FOR_CLIENTS |= {"prompt_logprob_token_ids", "prompt_logprob_start"}


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """How a client's value for one parameter is checked.

    ``keys`` are those of an object with fixed keys, such as ``structured_outputs``; empty for
    other parameters.
    """

    validate: Callable[[Any], Any]
    takes_booleans: bool
    keys: frozenset[str]

    @classmethod
    def of(cls, hint: Any) -> Field:
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


class Fields:
    """The parameters that a client may give, by name and type hint, and the check of each."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._fields = {name: Field.of(hint) for name, hint in hints.items()}

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


class SamplingParser:
    """Checks and converts sampling parameters. One for each model; used by any thread."""

    def __init__(
        self,
        defaults: Mapping[str, Any],
        default_max_tokens: int = 0,
        max_tokens_limit: int | None = None,
        max_sequences: int = 0,
    ) -> None:
        """Prepare a check for each field of ``SamplingParams`` and ``EngineOptions``.

        ``defaults`` are the model's own (``generation_config.json``). A request without
        ``max_tokens`` generates ``default_max_tokens`` if the operator has set it, else what the
        model's own defaults say, else up to the context; no request more than
        ``max_tokens_limit``, and none more than ``max_sequences`` sequences (0: vLLM's limit).
        """
        from triton_vllm.vllm_api import api as vllm_api

        options = typing.get_type_hints(EngineOptions)
        hints = {
            name: hint
            for name, hint in vllm_api.sampling_param_types().items()
            if not name.startswith("_") and name not in _NOT_FOR_CLIENTS
        }
        self._fields = Fields(hints | options)
        self._options = options.keys()
        self._class: Any = vllm_api.SamplingParams
        kinds = vllm_api.RequestOutputKind
        self._kind_of_stream = {True: kinds.DELTA, False: kinds.FINAL_ONLY}
        self._defaults = {"max_tokens": None, **defaults, "skip_clone": True}
        if default_max_tokens:
            self._defaults["max_tokens"] = default_max_tokens
        self._max_tokens_limit = max_tokens_limit
        self._max_sequences = max_sequences

    @property
    def names(self) -> Collection[str]:
        """The names of all parameters that a client may send."""
        return self._fields.names

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, EngineOptions]:
        """Return ``SamplingParams`` and options for what a client sent; ``null`` is the default.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        checked = self._fields.check(given, where)
        check_sequences(checked.get("n", 1), self._max_sequences, f'{where}: "n"')
        options = EngineOptions(
            **{name: checked.pop(name) for name in self._options & checked.keys()}
        )
        values = {**self._defaults, **checked, "output_kind": self._kind_of_stream[stream]}
        wanted, limit = values["max_tokens"], self._max_tokens_limit
        if limit is not None:
            values["max_tokens"] = limit if wanted is None else min(wanted, limit)
        if options.use_beam_search:
            if stream:
                raise RequestError(f'{where}: "use_beam_search": cannot be streamed')
            # Greedy, several sequences would be refused; to beam search, 0 and 1 are the same.
            values["temperature"] = values.get("temperature") or 1.0
        try:
            return self._class(**values), options
        except Exception as error:  # vLLM's own checks of ranges and combinations
            raise RequestError(f"{where}: {one_line(error)}") from None


def check_sequences(n: int, limit: int, where: str) -> None:
    """Raise RequestError if one request asks for more than ``limit`` sequences (0: no limit)."""
    if 0 < limit < n:
        raise RequestError(f"{where}: must be at most {limit} (max_n), got {n}")


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


def _reason(error: Exception, field: Field) -> str:
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
