"""The one file that imports vLLM, and the one that knows what differs between its versions.

Supported: vLLM 0.26 to 0.32. A difference is found by looking for the feature, never by
comparing version numbers. Importing this file imports vLLM (seconds), so do it late.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import AsyncGenerator, Mapping
from dataclasses import fields
from typing import Any, NoReturn

import vllm
from vllm import SamplingParams
from vllm import exceptions as vllm_exceptions
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import RequestOutput
from vllm.renderers.inputs.preprocess import parse_model_prompt
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

from triton_vllm.errors import (
    GenerationError,
    RequestError,
    ServingError,
    SettingsError,
    UnavailableError,
    one_line,
)

__all__ = ["AsyncEngineArgs", "AsyncLLM", "RequestOutput", "RequestOutputKind", "SamplingParams"]

# `max_num_batched_tokens` and friends default by usage context: take the ones of `vllm serve`.
USAGE_CONTEXT = UsageContext.OPENAI_API_SERVER


def _known_exceptions(*names: str) -> tuple[type[Exception], ...]:
    """The exception classes of ``names`` that this vLLM has."""
    return tuple(getattr(vllm_exceptions, n) for n in names if hasattr(vllm_exceptions, n))


# Before VLLMClientError existed, these and plain ValueErrors meant "the request is wrong".
_CLIENT_ERRORS = _known_exceptions(
    "VLLMClientError", "VLLMValidationError", "VLLMNotFoundError", "VLLMUnprocessableEntityError"
)
_OVERLOAD_ERRORS = _known_exceptions("QueueOverflowError", "MaxQueuedTokensError")


def version() -> str:
    """Return vLLM's version.

    Raises SettingsError where ``import vllm`` found a folder of that name and not the package.
    """
    if not hasattr(vllm, "__version__"):
        raise SettingsError(
            f"import vllm found {list(getattr(vllm, '__path__', []))}, which is not vLLM: "
            "the execution environment lacks the package"
        )
    return str(vllm.__version__)


class EngineArgsParser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's own command-line parser of engine arguments, raising where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as an argparse.ArgumentTypeError."""
        raise argparse.ArgumentTypeError(message)

    @classmethod
    def create(cls) -> EngineArgsParser:
        """Return a parser that knows every option of ``AsyncEngineArgs``."""
        return typing.cast(EngineArgsParser, AsyncEngineArgs.add_cli_args(cls(add_help=False)))


def engine_arg_types() -> dict[str, Any]:
    """Return the type hint of every field of ``AsyncEngineArgs``.

    Any stands for a hint that names a class which vLLM imports for type checkers only.
    """
    return {f.name: Any if isinstance(f.type, str) else f.type for f in fields(AsyncEngineArgs)}


def sampling_param_types() -> dict[str, Any]:
    """Return the type hint of every field of ``SamplingParams``."""
    hints = typing.get_type_hints(SamplingParams, include_extras=True)
    return {name: hints[name] for name in SamplingParams.__struct_fields__}


def create_config(engine_args: AsyncEngineArgs) -> Any:
    """Resolve engine arguments to a ``VllmConfig``, with the defaults of ``vllm serve``."""
    return engine_args.create_engine_config(usage_context=USAGE_CONTEXT)


def create_engine(engine_args: AsyncEngineArgs, config: Any, **front_end: Any) -> AsyncLLM:
    """Start an ``AsyncLLM``. Call in a running event loop, where it will live.

    ``front_end`` holds ``client_addresses``, ``client_count`` and ``client_index`` when the
    engine is shared by several processes; without them the engine core is started here.
    """
    return AsyncLLM.from_vllm_config(
        config,
        usage_context=USAGE_CONTEXT,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
        **front_end,
    )


def default_sampling_params(config: Any) -> Mapping[str, Any]:
    """Return the sampling defaults that the model's ``generation_config.json`` sets."""
    return typing.cast(Mapping[str, Any], config.model_config.get_diff_sampling_param())


async def tokenize(llm: AsyncLLM, prompt: str) -> Any:
    """Turn a text prompt into an engine input through vLLM's renderer, off the event loop.

    Raises vLLM's validation error for a prompt that does not fit the model's context.
    """
    parsed = parse_model_prompt(llm.model_config, prompt)
    (engine_input,) = await llm.renderer.render_cmpl_async(
        [parsed], llm.renderer.default_cmpl_tok_params
    )
    return engine_input


def generate(
    llm: AsyncLLM, engine_input: Any, params: SamplingParams, request_id: str
) -> AsyncGenerator[RequestOutput, None]:
    """Add a request to the engine; yield its outputs. Closing the generator aborts it."""
    return typing.cast(
        "AsyncGenerator[RequestOutput, None]", llm.generate(engine_input, params, request_id)
    )


def explain(error: Exception) -> ServingError:
    """Map what vLLM raised for one request to an error of ours."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, EngineDeadError):
        return UnavailableError(f"the engine died: {one_line(error)}")
    if isinstance(error, _OVERLOAD_ERRORS):
        return UnavailableError(one_line(error))
    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__)
    if isinstance(error, (*_CLIENT_ERRORS, ValueError, TypeError)):
        return RequestError(one_line(error))
    return GenerationError(f"{type(error).__name__}: {one_line(error)}")
