"""From a client's JSON object to vLLM's ``SamplingParams``.

Names and types come from vLLM's class, so every field of every supported version is there, and
nothing else is. pydantic converts ("0.1", "true", a list in a string) and checks types; the class
itself checks ranges.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

from triton_vllm.engine_args import json_types
from triton_vllm.errors import RequestError, did_you_mean, one_line
from triton_vllm.generation import EngineOptions

# Fields that are the engine's own business, or ours.
_NOT_FOR_CLIENTS = {"output_kind", "skip_clone", "output_text_buffer_length", "extra_args"}


class SamplingParser:
    """Checks and converts sampling parameters. One for each model; used by any thread."""

    def __init__(self, defaults: Mapping[str, Any], default_max_tokens: int = 0) -> None:
        """Prepare validators for each field of ``SamplingParams`` and ``EngineOptions``.

        ``defaults`` are the model's own (``generation_config.json``). A request without
        ``max_tokens`` generates ``default_max_tokens`` if the operator has set it, else what the
        model's own defaults say, else up to the context.
        """
        from pydantic import ConfigDict, TypeAdapter

        from triton_vllm import vllm_api

        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        hints = {
            name: hint
            for name, hint in vllm_api.sampling_param_types().items()
            if not name.startswith("_") and name not in _NOT_FOR_CLIENTS
        }
        options = typing.get_type_hints(EngineOptions)
        hints |= options
        self._options = options.keys()
        self._validators: dict[str, Callable[[Any], Any]] = {
            name: TypeAdapter(hint, config=config).validate_python for name, hint in hints.items()
        }
        self._booleans = {name for name, hint in hints.items() if bool in json_types(hint)}
        self._class: Any = vllm_api.SamplingParams
        kinds = vllm_api.RequestOutputKind
        self._kind_of_stream = {True: kinds.DELTA, False: kinds.FINAL_ONLY}
        self._defaults = {"max_tokens": None, **defaults, "skip_clone": True}
        if default_max_tokens:
            self._defaults["max_tokens"] = default_max_tokens

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, EngineOptions]:
        """Return ``SamplingParams`` and options for what a client sent; ``null`` is the default.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        checked = {
            name: self._check(name, value, where)
            for name, value in given.items()
            if value is not None or name not in self._validators
        }
        options = {name: checked.pop(name) for name in self._options & checked.keys()}
        try:
            params = self._class(
                **{**self._defaults, **checked, "output_kind": self._kind_of_stream[stream]}
            )
        except Exception as error:  # vLLM's own checks of ranges and combinations
            raise RequestError(f"{where}: {one_line(error)}") from None
        return params, EngineOptions(**options)

    def _check(self, name: str, value: Any, where: str) -> Any:
        validate = self._validators.get(name)
        if validate is None:
            raise RequestError(
                f'{where}: unknown key "{name}"{did_you_mean(name, self._validators)}'
            )
        if isinstance(value, bool) and name not in self._booleans:  # to pydantic, true is also 1
            raise RequestError(f'{where}: "{name}": must not be a boolean, got {_shown(value)}')
        try:
            return validate(value)
        except Exception as error:
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                return self._check(name, load_json(value, f'{where}: "{name}"'), where)
            raise RequestError(
                f'{where}: "{name}": {_reason(error)}, got {_shown(value)}'
            ) from None


def load_json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``. Raises RequestError saying where it is malformed."""
    value = load_json(text, where)
    if not isinstance(value, dict):
        raise RequestError(f"{where}: must be a JSON object, got {_shown(value)}")
    return value


def load_json(text: str, where: str) -> Any:
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


def _reason(error: Exception) -> str:
    """Return pydantic's first complaint in its own words, or the error's text."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        return str(error.errors(include_url=False)[0]["msg"])
    return one_line(error)


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."
