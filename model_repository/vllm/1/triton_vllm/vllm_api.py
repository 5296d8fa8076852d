"""The one file that imports vLLM, and the one that knows what differs between its versions.

Supported: vLLM 0.26 to 0.32. A difference is found by looking for the feature, never by
comparing version numbers. Importing this file imports vLLM (seconds), so do it late.
"""

from __future__ import annotations

import argparse
import inspect
import typing
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import fields, replace
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
from vllm.utils.network_utils import get_open_port, get_open_zmq_ipc_path, get_tcp_uri
from vllm.v1.engine import utils as engine_utils
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.executor import Executor
from vllm.v1.metrics.prometheus import get_prometheus_registry

from triton_vllm.errors import (
    EngineDownError,
    GenerationError,
    RequestError,
    ServingError,
    UnavailableError,
    one_line,
)
from triton_vllm.shared_engine import EngineAddresses
from triton_vllm.text_encoder import text_encoder

__all__ = ["AsyncEngineArgs", "AsyncLLM", "RequestOutput", "RequestOutputKind", "SamplingParams"]

# `max_num_batched_tokens` and friends default by usage context: take the ones of `vllm serve`.
USAGE_CONTEXT = UsageContext.OPENAI_API_SERVER
_SHORT_PROMPT = 4096  # characters: about a millisecond to tokenize


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
_LAUNCH_TAKES_COUNT = (
    "num_api_servers" in inspect.signature(engine_utils.launch_core_engines).parameters
)


def version() -> str:
    """Return vLLM's version."""
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
    llm = AsyncLLM.from_vllm_config(
        config,
        usage_context=USAGE_CONTEXT,
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
        **front_end,
    )
    text_encoder(llm.renderer.tokenizer)  # so that no request waits until it is made
    return llm


def engine_processes(llm: AsyncLLM) -> list[int]:
    """Return the ids of the engine core's processes, as far as this front end started them."""
    manager = llm.engine_core.resources.engine_manager
    return [process.pid for process in getattr(manager, "processes", [])]


class EngineCores:
    """The engine core processes that several front ends share, and their coordinator if any.

    Owned by the front end that launched them.
    """

    def __init__(self, engine_args: AsyncEngineArgs, front_ends: int) -> None:
        """Launch the processes and wait until the model is loaded. Blocks for all that time.

        Raises what vLLM raises when a process dies while it starts.
        """
        # Rank -1: this configuration belongs to no front end, but to the engine.
        config = create_config(as_front_end(engine_args, -1, front_ends))
        addresses = _zmq_addresses(config, front_ends)
        counts = {"num_api_servers": front_ends} if _LAUNCH_TAKES_COUNT else {}
        with engine_utils.launch_core_engines(
            config,
            Executor.get_class(config),
            not engine_args.disable_log_stats,
            addresses,
            **counts,
        ) as launch:
            if _LAUNCH_TAKES_COUNT:  # then it yields a tuple
                self._manager, self._coordinator, addresses, _ = launch
            else:
                self._manager, self._coordinator = launch.engine_manager, launch.coordinator
                addresses = launch.addresses
        self.addresses = EngineAddresses(
            inputs=list(addresses.inputs),
            outputs=list(addresses.outputs),
            stats_update=self._coordinator and self._coordinator.get_stats_publish_address(),
            processes=[p.pid for p in getattr(self._manager, "processes", [])],
        )

    def shutdown(self, timeout: float) -> None:
        """End the processes; kill them after ``timeout`` seconds."""
        for part in (self._manager, self._coordinator):
            if part is not None:
                part.shutdown(timeout=timeout)


def as_front_end(engine_args: AsyncEngineArgs, index: int, count: int) -> AsyncEngineArgs:
    """Return the engine arguments as seen from front end ``index`` of ``count``."""
    return replace(engine_args, _api_process_count=count, _api_process_rank=index)


def _zmq_addresses(config: Any, front_ends: int) -> Any:
    """Choose an input and an output address for each front end: IPC where all engines are here."""
    parallel = config.parallel_config
    local = parallel.local_engines_only or (
        parallel.data_parallel_size_local == parallel.data_parallel_size
    )

    def address() -> str:
        if local:
            return str(get_open_zmq_ipc_path())
        return str(get_tcp_uri(parallel.data_parallel_master_ip, get_open_port()))

    return engine_utils.EngineZmqAddresses(
        inputs=[address() for _ in range(front_ends)],
        outputs=[address() for _ in range(front_ends)],
    )


def default_sampling_params(config: Any) -> Mapping[str, Any]:
    """Return the sampling defaults that the model's ``generation_config.json`` sets."""
    return typing.cast(Mapping[str, Any], config.model_config.get_diff_sampling_param())


class Metrics:
    """vLLM's own metrics, of all front ends where there are several."""

    def collect(self) -> Iterator[Any]:
        """Yield the families that vLLM exports."""
        for family in get_prometheus_registry().collect():
            if family.name.startswith("vllm:"):
                yield family


async def tokenize(llm: AsyncLLM, prompt: str) -> Any:
    """Turn a text prompt into an engine input through vLLM's renderer.

    A long prompt is tokenized off the event loop; for a short one the way there and back would
    take longer than the work, and the first token would wait for it.

    Raises vLLM's validation error for a prompt that does not fit the model's context.
    """
    params = llm.renderer.default_cmpl_tok_params
    if len(prompt) <= _SHORT_PROMPT:
        parsed = parse_model_prompt(llm.model_config, _with_token_ids(llm, prompt, params))
        (engine_input,) = llm.renderer.render_cmpl([parsed], params)
    else:
        parsed = parse_model_prompt(llm.model_config, prompt)
        (engine_input,) = await llm.renderer.render_cmpl_async([parsed], params)
    return engine_input


def _with_token_ids(llm: AsyncLLM, prompt: str, params: Any) -> str | dict[str, Any]:
    """Return the prompt with its token ids, if there is a shorter way to them than the renderer's.

    The renderer takes it from there: it checks the length, for instance.
    """
    encode = text_encoder(llm.renderer.tokenizer)
    if encode is None or params.do_lower_case or llm.model_config.is_encoder_decoder:
        return prompt
    return {"prompt": prompt, "prompt_token_ids": encode(prompt, params.add_special_tokens)}


def generate(
    llm: AsyncLLM,
    engine_input: Any,
    params: SamplingParams,
    request_id: str,
    trace_headers: Mapping[str, str],
) -> AsyncGenerator[RequestOutput, None]:
    """Add a request to the engine; yield its outputs. Closing the generator aborts it."""
    traced = trace_headers and llm.observability_config.otlp_traces_endpoint
    outputs = llm.generate(
        engine_input, params, request_id, trace_headers=trace_headers if traced else None
    )
    return typing.cast("AsyncGenerator[RequestOutput, None]", outputs)


def explain(error: Exception) -> ServingError:
    """Map what vLLM raised for one request to an error of ours."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, EngineDeadError):
        return EngineDownError(f"the engine died: {one_line(error)}")
    if isinstance(error, _TRY_LATER_ERRORS):
        return UnavailableError(one_line(error))
    if isinstance(error, EngineGenerateError) and isinstance(error.__cause__, Exception):
        return explain(error.__cause__)
    if isinstance(error, (*_CLIENT_ERRORS, ValueError, TypeError)):
        return RequestError(one_line(error))
    return GenerationError(f"{type(error).__name__}: {one_line(error)}")
