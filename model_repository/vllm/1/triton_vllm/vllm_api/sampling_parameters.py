"""From a client's JSON object to vLLM's ``SamplingParams``.

Names and types come from vLLM's class, so every field of every supported version is there, and
nothing else is. The class itself checks ranges.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Mapping
from typing import Any

from triton_vllm.errors import RequestError
from triton_vllm.limits.admission import check_sequences
from triton_vllm.protocol.fields import ParameterValidator
from triton_vllm.protocol.requests import EngineOptions
from triton_vllm.protocol.schema import GENERATION_SCHEMAS
from triton_vllm.vllm_api import api as vllm_api

# Fields that the engine or this package sets, or whose result has no output here.
_NOT_FOR_CLIENTS = {"output_kind", "skip_clone", "output_text_buffer_length", "extra_args"}
_NOT_FOR_CLIENTS |= {"prompt_logprob_token_ids", "prompt_logprob_start"}


class SamplingParser:
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
        options = typing.get_type_hints(EngineOptions)
        hints = {
            name: hint
            for name, hint in vllm_api.sampling_param_types().items()
            if not name.startswith("_") and name not in _NOT_FOR_CLIENTS
        }
        self.parameters = ParameterValidator(hints | options)
        self._options = options.keys()
        self._class: Any = vllm_api.SamplingParams
        owners = ((vllm_api.SamplingParams(), hints), (EngineOptions(), options))
        self._neutral = {name: getattr(owner, name) for owner, names in owners for name in names}
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
        return self.parameters.names

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
        options = EngineOptions(
            **{name: checked.pop(name) for name in self._options & checked.keys()}
        )
        values = {**self._defaults, **checked, "output_kind": self._kind_of_stream[stream]}
        wanted, limit = values["max_tokens"], self._max_tokens_limit
        if limit is not None:
            values["max_tokens"] = limit if wanted is None else min(wanted, limit)
        if options.use_beam_search:
            # Greedy, several sequences would be refused; to beam search, 0 and 1 are the same.
            values["temperature"] = values.get("temperature") or 1.0
        try:
            return self._class(**values), options
        except Exception as error:  # vLLM's own checks of ranges and combinations
            raise RequestError(f"{where}: {vllm_api.why_wrong(error)}") from None

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
