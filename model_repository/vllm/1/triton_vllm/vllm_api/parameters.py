"""From a client's JSON object to vLLM's ``SamplingParams`` or ``PoolingParams``.

Names and types come from vLLM's classes, so every field of every supported version is there, and
nothing else is. The classes themselves check ranges.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from triton_vllm.errors import RequestError
from triton_vllm.limits.admission import check_sequences
from triton_vllm.protocol.fields import ParameterValidator
from triton_vllm.protocol.requests import EngineOptions, PoolingOptions
from triton_vllm.protocol.schema import GENERATION_SCHEMAS, POOLING_SCHEMAS
from triton_vllm.vllm_api import api as vllm_api

# Fields that the engine or this package sets, or whose result has no output here.
_NOT_FOR_CLIENTS = {"output_kind", "skip_clone", "output_text_buffer_length", "extra_args", "task"}
_NOT_FOR_CLIENTS |= {"prompt_logprob_token_ids", "prompt_logprob_start", "requires_token_ids"}
_NOT_FOR_CLIENTS |= {"late_interaction_params", "extra_kwargs"}
# What makes no sense without sampling.
_NOT_FOR_POOLING = {"use_beam_search", "length_penalty", "data_parallel_rank", "on_timeout"}
_NOT_FOR_POOLING |= {"skip_reading_prefix_cache"}


class _Parser:
    """The check of vLLM's class ``kind`` of parameters, and of the ``options`` beside it."""

    def __init__(self, kind: Any, options: type[EngineOptions], hidden: set[str]) -> None:
        """Prepare a check for each field of either that is not ``hidden``."""
        known = vllm_api.param_types(kind).items()
        fields = {n: hint for n, hint in known if n not in hidden and not n.startswith("_")}
        own = typing.get_type_hints(options).items()
        beside = {n: hint for n, hint in own if n not in hidden}
        self.parameters = ParameterValidator(fields | beside)
        self._kind = kind
        self._fields, self._options = fields.keys(), beside.keys()

    def _take_options(self, checked: dict[str, Any]) -> dict[str, Any]:
        return {name: checked.pop(name) for name in self._options & checked.keys()}

    def _made(self, values: Mapping[str, Any], where: str) -> Any:
        try:
            return self._kind(**values)
        except Exception as error:  # vLLM's own checks of ranges and combinations
            raise RequestError(f"{where}: {vllm_api.why_wrong(error)}") from None


class SamplingParser(_Parser):
    """Checks and converts sampling parameters. One for each model; used by any thread."""

    schemas = GENERATION_SCHEMAS

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
        super().__init__(vllm_api.SamplingParams, EngineOptions, _NOT_FOR_CLIENTS)
        owners = ((self._kind(), self._fields), (EngineOptions(), self._options))
        self._neutral = {name: getattr(owner, name) for owner, names in owners for name in names}
        self._defaults = {"max_tokens": None, **defaults, "skip_clone": True}
        if default_max_tokens:
            self._defaults["max_tokens"] = default_max_tokens
        self._max_tokens_limit = max_tokens_limit
        self._max_sequences = max_sequences

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, EngineOptions]:
        """Return ``SamplingParams`` and options for what a client sent; ``null`` is the default.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        checked = self.parameters.check(given, where)
        check_sequences(checked.get("n", 1), self._max_sequences, f'{where}: "n"')
        if checked.get("use_beam_search"):
            self._check_beam_search(checked, stream=stream, where=where)
        options = EngineOptions(**self._take_options(checked))
        kinds = vllm_api.RequestOutputKind
        kind = kinds.DELTA if stream else kinds.FINAL_ONLY
        values = {**self._defaults, **checked, "output_kind": kind}
        wanted, limit = values["max_tokens"], self._max_tokens_limit
        if limit is not None:
            values["max_tokens"] = limit if wanted is None else min(wanted, limit)
        if options.use_beam_search:
            # Greedy, several sequences would be refused; to beam search, 0 and 1 are the same.
            values["temperature"] = values.get("temperature") or 1.0
        return self._made(values, where), options

    def _check_beam_search(self, checked: Mapping[str, Any], *, stream: bool, where: str) -> None:
        """Raise RequestError for a stream, and for a parameter that beam search would ignore."""
        if stream:
            raise RequestError(f'{where}: "use_beam_search": cannot be streamed')
        for name, value in checked.items():
            heeded = name in vllm_api.beam_search_names()
            if not heeded and value not in (self._neutral[name], [], {}):
                raise RequestError(
                    f'{where}: "{name}": does not go with "use_beam_search", as beam search of '
                    f"vLLM {vllm_api.version()} ignores it"
                )


class PoolingParser(_Parser):
    """Checks and converts pooling parameters. One for each model; used by any thread."""

    schemas = POOLING_SCHEMAS

    def __init__(self) -> None:
        """Prepare a check for each field of ``PoolingParams`` and ``PoolingOptions``."""
        hidden = _NOT_FOR_CLIENTS | _NOT_FOR_POOLING
        super().__init__(vllm_api.PoolingParams, PoolingOptions, hidden)

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, PoolingOptions]:
        """Return ``PoolingParams`` and options for what a client sent, as for sampling."""
        assert not stream, "as no form of request to a pooling model has that input"
        checked = self.parameters.check(given, where)
        options = PoolingOptions(**self._take_options(checked))
        return self._made(checked, where), options
