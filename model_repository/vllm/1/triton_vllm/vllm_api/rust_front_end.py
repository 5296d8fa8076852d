"""vLLM's Rust front end: its binary, the options that it has, and its command line.

Importing this file imports vLLM, so do it late.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vllm
import zmq
from vllm import SamplingParams, envs
from vllm.sampling_params import StructuredOutputsParams
from vllm.utils import network_utils
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.errors import SettingsError, did_you_mean, one_line
from triton_vllm.topology.front_ends import EngineAddresses
from triton_vllm.vllm_api.engine_process import RUST_REQUESTS
from triton_vllm.vllm_api.versions import first

_startup = first("vllm.entrypoints.common.startup", "vllm.entrypoints.serve.utils.api_utils")

PATH = "VLLM_RUST_FRONTEND_PATH"
_UNIMPLEMENTED = "Options not implemented"  # the heading of those in its help
_OPTION = re.compile(r"^ +(?:-\w, )?--([a-z0-9-]+)", re.MULTILINE)
_HELP_SECONDS = 30
_READY_SECONDS = 3600  # for an engine to register, which is loaded by then
# What is said on its command line, and keys, which must not be.
_NOT_PASSED = {"api_key", "api_server_count", "host", "port", "model", "served_model_name"}
_NOT_PASSED |= {"hf_token"}  # which goes by its environment, as the key does
_NOT_PASSED |= {"data_parallel_rank", "data_parallel_external_lb", "data_parallel_hybrid_lb"}


def find_binary(where: str) -> str:
    """Return the binary of this vLLM, or what the environment names. Raises SettingsError."""
    given = os.environ.get(PATH, "auto")
    beside = Path(vllm.__file__).with_name("vllm-rs")
    binary = beside if given.lower() in ("auto", "1", "true") else Path(given)
    if not os.access(binary, os.X_OK):
        raise SettingsError(
            f'{where}: "server": "rust": {binary} is not there: vLLM\'s wheels for CUDA have it; '
            f'else {PATH} says where it is, or use "server": "python"'
        )
    return str(binary)


class RustFrontEnd:
    """What one model's Rust front end is started with."""

    def __init__(self, binary: str, where: str) -> None:
        """Ask the binary for its options. ``where`` names the object in the operator's file."""
        self._binary = binary
        self._where = where
        self._options = {name.replace("-", "_") for name in _options(binary, "serve")}
        self._flags = _options(binary, "frontend")
        self._arguments: dict[str, Any] = {}
        self.variables: dict[str, str] = {}  # of its environment

    def has(self, option: str) -> bool:
        """Return whether it has an option, by its name in JSON."""
        return option in self._options

    def check_names(self, given: Mapping[str, Any]) -> None:
        """Raise SettingsError for an option that it has not: it would ignore some in silence."""
        for key in given:
            if not self.has(key):
                nearest = did_you_mean(key, self._options - _NOT_PASSED)
                raise SettingsError(
                    f'{self._where}: "{key}": vLLM\'s Rust front end has no such option{nearest}'
                    '; "server": "python" has it'
                )

    def configure(
        self,
        args: argparse.Namespace,
        written: Mapping[str, Any],
        model: str,
        shutdown_seconds: float,
    ) -> None:
        """Take the arguments of ``vllm serve``; have the binary look at them.

        ``written`` are the engine arguments of the operator's file, without what vLLM has inferred;
        ``model`` is the engine's. Raises SettingsError, with the arguments that it refuses.
        """
        if isinstance(token := written.get("hf_token"), str):
            self.variables = {"HF_TOKEN": token}
        # The library is the engine's: see settle_library.
        engine = written.keys() - {"structured_outputs_config"}
        names = args.served_model_name or [args.model]
        given = _startup.jsonify_non_default_args(args, exclude=_NOT_PASSED)
        self._arguments = {k: v for k, v in given.items() if self.has(k) or k in engine} | {
            "model_tag": model,
            "served_model_name": [names] if isinstance(names, str) else list(names),
            "engine_ready_timeout_secs": _READY_SECONDS,
            "http_timeout_keep_alive": envs.VLLM_HTTP_TIMEOUT_KEEP_ALIVE,
            "shutdown_timeout": int(shutdown_seconds),
        }
        # It reads its arguments first, and then looks for the model, of which there is none here.
        trial = self._command(-1, "ipc:///", (-1, -1), "ipc:///", {"model_tag": os.devnull})
        offline = os.environ | self.variables | {"HF_HUB_OFFLINE": "1"}
        asked = subprocess.run(
            trial, capture_output=True, text=True, timeout=_HELP_SECONDS, check=False, env=offline
        )
        if asked.returncode == 2:  # as clap exits, which parses command lines
            said = asked.stderr.rpartition("--args-json <JSON>': ")[2].partition("\n\n")[0]
            raise SettingsError(f"{self._where}: vLLM's Rust front end: {one_line(said)}")

    @contextlib.contextmanager
    def command(
        self, llm: AsyncLLM, addresses: EngineAddresses, start: int, port: int
    ) -> Iterator[tuple[list[str], list[int]]]:
        """Yield its command line, and the descriptors that it inherits until the context ends.

        ``start`` counts its starts with this engine, from 0. ``port`` is the descriptor of the
        listening socket.
        """
        given, taken = addresses.rust_inputs[start], addresses.rust_output
        with contextlib.ExitStack() as stack:
            listeners: list[int] = []
            if "input-listener-fd" in self._flags:
                for address, kind in ((given, zmq.ROUTER), (taken, zmq.PULL)):
                    Path(address.removeprefix("ipc://")).unlink(missing_ok=True)
                    listener = network_utils.make_zmq_listener(address, kind)
                    stack.callback(listener.close)
                    listeners.append(listener.socket.fileno())
            command = self._command(port, given, tuple(listeners), taken, {})
            parallel = llm.vllm_config.parallel_config
            local = parallel.local_engines_only
            command += ["--engine-start-index", str(parallel.data_parallel_rank if local else 0)]
            count = parallel.data_parallel_size_local if local else parallel.data_parallel_size
            command += ["--engine-count", str(count)]
            if "data-parallel-size" in self._flags:
                command += ["--data-parallel-size", str(parallel.data_parallel_size)]
            if addresses.stats_update is not None:
                command += ["--coordinator-address", addresses.stats_update]
            yield command, [port, *listeners]

    async def settle_library(self, llm: AsyncLLM) -> None:
        """Have each engine core load its structured-output library, that of the configuration.

        It loads what its first structured request names, for its life, and the Rust front end
        names one by the kind of request.
        """
        config = llm.vllm_config
        if config.model_config.skip_tokenizer_init:
            return
        params = SamplingParams(max_tokens=1, structured_outputs=StructuredOutputsParams(regex="a"))
        for rank in range(config.parallel_config.data_parallel_size):
            async for _ in llm.generate("a", params, f"library-{rank}", data_parallel_rank=rank):
                pass

    async def abort_requests(self, llm: AsyncLLM) -> None:
        """Have each engine core abort what it generates for a process that has died.

        Returns when they have, before another process sends requests. Raises what vLLM raises if an
        engine core is dead.
        """
        await llm.engine_core.call_utility_async("abort_requests", [RUST_REQUESTS])

    def _command(
        self, port: int, given: str, listeners: tuple[int, ...], taken: str, changed: dict[str, Any]
    ) -> list[str]:
        if "input-listener-fd" in self._flags:
            sockets = [f"--input-listener-fd={listeners[0]}"]
            sockets += [f"--output-listener-fd={listeners[1]}"]
        else:
            sockets = [f"--input-address={given}", f"--output-address={taken}"]
        arguments = json.dumps(self._arguments | changed)
        return [self._binary, "frontend", f"--listen-fd={port}", *sockets, "--args-json", arguments]


def _options(binary: str, command: str) -> set[str]:
    """Return the options that a command of the binary's has and implements."""
    asked = subprocess.run(
        [binary, command, "--help"],
        capture_output=True,
        text=True,
        timeout=_HELP_SECONDS,
        check=True,
    )
    return set(_OPTION.findall(asked.stdout.partition(_UNIMPLEMENTED)[0]))
