"""vLLM's engine, its arguments and its errors, and what differs between its versions.

Supported: vLLM 0.26 to 0.33. A difference is found by looking for the feature, never by
comparing version numbers.
"""

from __future__ import annotations

import argparse
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any, NoReturn

import vllm
from vllm import PoolingParams, SamplingParams
from vllm import exceptions as vllm_exceptions
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.prometheus import get_prometheus_registry

from triton_vllm.config.flags import flags_as_keys
from triton_vllm.config.settings import ENGINE_ARGS_FILE
from triton_vllm.errors import (
    EngineDownError,
    GenerationError,
    RequestError,
    ServingError,
    UnavailableError,
    one_line,
)
from triton_vllm.vllm_api.compat import cli_args
from triton_vllm.vllm_api.forked import cores_from, inspected_in
from triton_vllm.vllm_api.rank_balancing import choose_ranks_together
from triton_vllm.vllm_api.render.text import beam_search_names
from triton_vllm.vllm_api.start import (
    EngineCores,
    as_front_end,
    create_config,
    create_engine,
    engine_processes,
    shut_down,
)
from triton_vllm.vllm_api.structured_outputs import library_of

__all__ = ["AsyncEngineArgs", "AsyncLLM", "PoolingParams", "RequestOutput", "RequestOutputKind"]
__all__ += ["EngineCores", "as_front_end", "create_config", "create_engine", "engine_processes"]
__all__ += ["choose_ranks_together"]
__all__ += ["beam_search_names", "cores_from", "inspected_in", "library_of", "shut_down"]
__all__ += ["SamplingParams"]


def _known_exceptions(*names: str) -> tuple[type[Exception], ...]:
    """The exception classes of ``names`` that this vLLM has."""
    return tuple(getattr(vllm_exceptions, n) for n in names if hasattr(vllm_exceptions, n))


# Before VLLMClientError existed, these and plain ValueErrors meant "the request is wrong".
_CLIENT_ERRORS = _known_exceptions(
    "VLLMClientError", "VLLMValidationError", "VLLMNotFoundError", "VLLMUnprocessableEntityError"
)
_TRY_LATER_ERRORS = _known_exceptions(
    "QueueOverflowError", "MaxQueuedTokensError", "RetryableRequestError"
)
_LIMITS = {
    "QueueOverflowError": "(max_num_queued_reqs)",
    "MaxQueuedTokensError": "(max_num_queued_tokens)",
}


def version() -> str:
    """Return vLLM's version."""
    return str(vllm.__version__)


class EngineArgsParser(FlexibleArgumentParser):  # type: ignore[misc]
    """vLLM's own command-line parser, raising where argparse would exit."""

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


def param_types(kind: Any) -> dict[str, Any]:
    """Return the type hint of every field of ``SamplingParams`` or ``PoolingParams``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__struct_fields__}


def default_sampling_params(config: Any) -> Mapping[str, Any]:
    """Return the sampling defaults that the model's ``generation_config.json`` sets."""
    return typing.cast(Mapping[str, Any], config.model_config.get_diff_sampling_param())


def max_tokens_limit(config: Any) -> int | None:
    """Return what no request may exceed: the operator's ``max_new_tokens``, as in ``vllm serve``.

    It is in ``override_generation_config``, or in a file that ``generation_config`` names.
    """
    model = config.model_config
    if model.generation_config in ("auto", "vllm"):
        return typing.cast("int | None", model.override_generation_config.get("max_new_tokens"))
    return typing.cast("int | None", model.get_diff_sampling_param().get("max_tokens"))


class Metrics:
    """vLLM's own metrics, of all front ends where there are several."""

    def collect(self) -> Iterator[Any]:
        """Yield the families that vLLM exports."""
        for family in get_prometheus_registry().collect():
            if family.name.startswith("vllm:"):
                yield family


def is_pooling(config: Any) -> bool:
    """Return whether the model answers with embeddings, and generates no text."""
    return bool(config.model_config.runner_type == "pooling")


def grammar_tokenizer(llm: AsyncLLM) -> Callable[[], str] | None:
    """Return what makes xgrammar's ``TokenizerInfo`` as JSON; None if xgrammar compiles nothing.

    The other backends compile while they generate, or have limits of their own.
    """
    if llm.vllm_config.structured_outputs_config.backend != "xgrammar":
        return None
    if llm.model_config.skip_tokenizer_init:
        return None
    # Not the engine itself: it is kept for all engines that follow this one.
    tokenizer, vocab_size = llm.get_tokenizer(), llm.model_config.get_vocab_size()

    def make() -> str:
        import xgrammar

        made = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=vocab_size)
        return str(made.serialize_json())

    return make


def has_failed(llm: AsyncLLM) -> bool:
    """Return whether vLLM has given the engine up, or reads its outputs no more.

    A request may make the task that reads them raise. Nothing restarts it: all requests would wait.
    """
    reader = llm.output_handler
    return bool(llm.errored) or (reader is not None and reader.done())


def queued_tokens(llm: AsyncLLM) -> int:
    """Return how many prompt tokens of this front end's requests wait for their prefill."""
    states = llm.output_processor.request_states.values()
    return sum(state.prompt_len for state in states if state.is_prefilling)


@functools.cache
def _options() -> frozenset[str]:
    """Return the names of all options of ``vllm serve``."""
    return frozenset(f.name for f in (*fields(AsyncEngineArgs), *fields(cli_args.FrontendArgs)))


def as_keys(error: Exception | str, file: str = "") -> str:
    """Return what vLLM says in one line, with its flags as keys.

    ``file`` is the name of the file that they belong to, where the text does not begin with it.
    """
    return flags_as_keys(one_line(error), _options(), file)


def why_wrong(error: Exception | str) -> str:
    """Return vLLM's reason for the refusal of a request."""
    return as_keys(error, ENGINE_ARGS_FILE)


def came_with_outputs(error: BaseException) -> bool:
    """Return whether vLLM raised an error where a request waits for its outputs.

    It is the request's own, or that of the engine, which all requests get.
    """
    return isinstance(error, (EngineDeadError, EngineGenerateError))


def to_serving_error(error: Exception) -> ServingError:
    """Map what vLLM raised for one request to a ServingError."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDownError(f"the engine died: {as_keys(error)}")
    if isinstance(error, _TRY_LATER_ERRORS):
        limit = _LIMITS.get(type(error).__name__, "")
        return UnavailableError(f"{as_keys(error)} {limit}".strip())
    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, Exception):
        return to_serving_error(error.__cause__)
    if isinstance(error, UnicodeEncodeError):  # what JSON within JSON held, such as a tool's call
        return RequestError("the request holds half of a surrogate pair, which is no Unicode text")
    if isinstance(error, (*_CLIENT_ERRORS, ValueError, TypeError)):
        return RequestError(why_wrong(error))
    return GenerationError(f"{type(error).__name__}: {as_keys(error)}")
