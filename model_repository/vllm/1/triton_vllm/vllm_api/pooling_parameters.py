"""From a client's JSON object to vLLM's ``PoolingParams``, for embedding and scoring models."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import ParameterValidator
from triton_vllm.protocol.requests import PoolingOptions
from triton_vllm.protocol.schema import POOLING_SCHEMAS
from triton_vllm.vllm_api import api as vllm_api

# Fields that the engine or this package sets.
_NOT_FOR_CLIENTS = {"task", "requires_token_ids", "skip_reading_prefix_cache", "extra_kwargs"}
_NOT_FOR_CLIENTS |= {"late_interaction_params", "output_kind"}
# What makes no sense without sampling.
_NOT_FOR_POOLING = {"use_beam_search", "length_penalty", "data_parallel_rank", "on_timeout"}


class PoolingParser:
    """Checks and converts pooling parameters. One for each model; used by any thread."""

    schemas = POOLING_SCHEMAS

    def __init__(self) -> None:
        """Prepare a check for each field of ``PoolingParams`` and ``PoolingOptions``."""
        hints = {
            name: hint
            for name, hint in vllm_api.pooling_param_types().items()
            if not name.startswith("_") and name not in _NOT_FOR_CLIENTS
        }
        options = {
            name: hint
            for name, hint in typing.get_type_hints(PoolingOptions).items()
            if name not in _NOT_FOR_POOLING
        }
        self.parameters = ParameterValidator(hints | options)
        self._options = options.keys()
        self._class: Any = vllm_api.PoolingParams

    def parse(
        self, given: Mapping[str, Any], *, stream: bool, where: str
    ) -> tuple[Any, PoolingOptions]:
        """Return ``PoolingParams`` and options for what a client sent; ``null`` is the default.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        assert not stream, "as no form of request to a pooling model has that input"
        checked = self.parameters.check(given, where)
        options = {name: checked.pop(name) for name in self._options & checked.keys()}
        try:
            return self._class(**checked), PoolingOptions(**options)
        except Exception as error:  # vLLM's own checks
            raise RequestError(f"{where}: {vllm_api.why_wrong(error)}") from None
