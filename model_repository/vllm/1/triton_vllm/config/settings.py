"""The operator's settings: ``vllm_engine_args.json`` and Triton's arguments to the model.

The file holds vLLM's engine arguments under vLLM's names, and the object ``"serving"`` with the
settings of this package. Triton's own vLLM backend calls the file ``model.json`` and keeps it in
the version's folder, where it is found too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from triton_vllm.config.files import check_readable, model_file, read_json_object
from triton_vllm.config.openai import OpenAISettings, with_frontend
from triton_vllm.config.placement import Placement
from triton_vllm.config.validation import CONFIG, setting, validate
from triton_vllm.errors import SettingsError

ENGINE_ARGS_FILE = "vllm_engine_args.json"
BACKEND_ENGINE_ARGS_FILE = "model.json"
SERVING_KEY = "serving"
# Options of vLLM's front end, not of its engine. They are beside the engine arguments, as on the
# command line of ``vllm serve``. ``reasoning_parser`` is an engine argument.
CHAT_KEYS = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none",
    "reasoning_effort_map",
    "tool_call_parser",
    "tool_parser_plugin",
    "tool_strict_level",
)
# Settings that had another name before 1.0.
RENAMED = {
    "cancellation_check_seconds": "cancellation_poll_seconds",
    "metrics_period_seconds": "metrics_interval_seconds",
    "engine_restarts": "max_engine_restarts",
    "engine_cpus": "engine_cpu_affinity",
    "max_requests": "max_concurrent_requests",
    "max_sequences_per_request": "max_n",
    "drain_seconds": "drain_timeout_seconds",
    "grammar_timeout_seconds": "grammar_compile_timeout_seconds",
    "cluster_timeout_seconds": "cluster_join_timeout_seconds",
}
METRICS_PARAMETER = "REPORT_CUSTOM_METRICS"


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The ``"serving"`` object of ``vllm_engine_args.json``. Times are in seconds.

    scripts/settings_table.py makes docs/configuration.md of the texts below the fields.
    """

    __pydantic_config__ = CONFIG

    sender_threads: int = setting(0, ge=0, le=64)
    """Threads in each front end that send responses. 0: eight over all front ends, at most four in
    each."""
    max_tokens_per_response: int = setting(0, ge=0, le=1_000_000)
    """Most tokens that are merged into one response of a stream when the client or the network is
    slow. 0: no bound."""
    cancellation_poll_seconds: float = setting(0.1, ge=0.01, le=60)
    """Interval between checks whether the clients of running requests are still connected."""
    default_max_tokens: int = setting(0, ge=0, le=10_000_000)
    """`max_tokens` of requests that set none, over both protocols. 0: the model's own default,
    else what fits into its context, and 16 for OpenAI's completions, as in `vllm serve`."""
    metrics_interval_seconds: float = setting(2.0, ge=0.1, le=60)
    """Interval between exports of metrics to Triton."""
    preload: bool = setting(True)
    """Whether a second process imports vLLM while the front end does, and stays: engine cores and
    their workers start from it, the first ones and those that follow dead ones. It takes memory.
    [How it works](performance.md#start-up)."""
    max_engine_restarts: int = setting(5, ge=0, le=1000)
    """Attempts in a row to restart an engine that died, after 0, 1, 2, 4 ... 30 seconds. 0: none.
    After the last one the liveness probe fails."""
    engine_cpu_affinity: str = setting("")
    """CPUs reserved for the engine core, as a Linux CPU list such as `"0-1"`. Empty: no pinning.
    Two for each process of the engine; small models gain most."""
    vllm_log_level: Literal["", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"] = ""
    """Level of vLLM's own log lines. Empty: `VLLM_LOGGING_LEVEL`, else INFO."""
    max_concurrent_requests: int = setting(0, ge=0, le=1_000_000)
    """Most requests that run or wait at once, over all front ends, which share it evenly. Further
    requests are refused. 0: no limit."""
    max_queued_tokens: int = setting(0, ge=0, le=1_000_000_000)
    """Most prompt tokens that wait for their prefill in one front end. Further requests are
    refused. 0: no limit."""
    max_n: int = setting(128, ge=0, le=1_000_000)
    """Largest `n` of a request, beams of beam search included. 0: vLLM's own limit."""
    default_timeout_seconds: float = setting(0.0, ge=0, le=86_400)
    """Timeout of requests that set none, from arrival to end. 0: none."""
    drain_timeout_seconds: float = setting(20.0, ge=0, le=3600)
    """Time that running requests get when the model is unloaded or the server is stopped, at most
    what `--exit-timeout-secs` leaves."""
    grammar_compile_timeout_seconds: float = setting(5.0, ge=0, le=3600)
    """Time that a grammar of structured outputs may take to compile, in processor time. 0: no
    limit, and no sandbox."""
    unsupported_schema_keywords: Literal["serve", "refuse"] = "serve"
    """What happens to a JSON schema with keywords that the structured-output library ignores or
    narrows: `"serve"`, or `"refuse"` with the list of them. [Structured
    outputs](structured-outputs.md) has the keywords."""
    cluster_join_timeout_seconds: float = setting(600.0, ge=1, le=86_400)
    """Time that the start of an engine on several nodes waits for the other nodes."""
    openai: OpenAISettings | None = None
    """Object that opens a port for the OpenAI-compatible API."""

    @classmethod
    def from_json(cls, given: object, where: str) -> ServingSettings:
        """Check the object ``given`` of the file ``where``. Raises SettingsError."""
        if isinstance(given, dict):
            _refuse_old_names(given, where, SERVING_KEY)
            if isinstance(openai := given.get("openai"), dict):
                _refuse_old_names(openai, where, f"{SERVING_KEY}.openai")
                given = given | {"openai": with_frontend(openai)}
        return validate(cls, given, where, SERVING_KEY)


def _refuse_old_names(given: Mapping[str, Any], where: str, name: str) -> None:
    for key in given:
        if key in RENAMED:
            raise SettingsError(f'{where}: "{name}.{key}" is now called "{RENAMED[key]}"')


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All settings of one model.

    ``engine_args`` and ``chat`` are as written in the file. ``placement`` holds the engines' GPUs
    and the number of processes that share an engine. ``report_metrics`` is false if config.pbtxt
    sets the parameter REPORT_CUSTOM_METRICS to "false".
    """

    name: str
    version: str
    directory: Path
    engine_args: Mapping[str, Any]
    chat: Mapping[str, Any] = field(default_factory=dict)
    serving: ServingSettings = field(default_factory=ServingSettings)
    placement: Placement = field(default_factory=Placement)
    report_metrics: bool = True

    @property
    def front_ends(self) -> int:
        """The number of processes that share this one's engine."""
        return self.placement.front_ends

    @property
    def rust_clients(self) -> int:
        """1 where vLLM's Rust front end is one more client of the engine, its first; else 0."""
        openai = self.serving.openai
        return int(openai is not None and openai.server == "rust")

    @property
    def sender_threads(self) -> int:
        """The number of sender threads in each front end.

        With eight over one to eight front ends the engine stayed the bottleneck (H100, 256 streams,
        2026-11-22; docs/benchmarks.md). More threads compete for the interpreter.
        """
        return self.serving.sender_threads or min(4, max(1, 8 // self.front_ends))

    @property
    def engine_args_path(self) -> Path:
        """The file with the engine arguments."""
        return model_file(self.directory, self.version, ENGINE_ARGS_FILE, BACKEND_ENGINE_ARGS_FILE)

    @classmethod
    def from_triton(cls, args: Mapping[str, str]) -> ModelSettings:
        """Read the settings of the model that Triton describes in ``initialize``'s ``args``.

        Raises SettingsError with one line that names the file, the key and what is allowed.
        """
        directory = Path(args["model_repository"])
        where = directory / "config.pbtxt"
        config = json.loads(args["model_config"])
        if not config.get("model_transaction_policy", {}).get("decoupled"):
            raise SettingsError(
                f"{where}: model_transaction_policy {{ decoupled: true }} is missing: a stream "
                "sends many responses to one request"
            )
        path = model_file(
            directory, args["model_version"], ENGINE_ARGS_FILE, BACKEND_ENGINE_ARGS_FILE
        )
        engine_args = read_json_object(path, 'the engine arguments, at least {"model": "..."}')
        check_readable(engine_args, str(path))
        serving = ServingSettings.from_json(engine_args.pop(SERVING_KEY, {}), str(path))
        return cls(
            name=args["model_name"],
            version=args["model_version"],
            directory=directory,
            engine_args={k: v for k, v in engine_args.items() if k not in CHAT_KEYS},
            chat={k: v for k, v in engine_args.items() if k in CHAT_KEYS},
            serving=serving,
            placement=Placement.from_triton(
                config, args, where, os.environ.get("CUDA_VISIBLE_DEVICES")
            ),
            report_metrics=_report_metrics(config, where),
        )


def _report_metrics(config: Mapping[str, Any], where: Path) -> bool:
    """Return the parameter of Triton's own vLLM backend; here the default is true."""
    given = config.get("parameters", {}).get(METRICS_PARAMETER, {}).get("string_value", "true")
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if given.strip().lower() not in words:
        raise SettingsError(
            f'{where}: parameter {METRICS_PARAMETER} must be "true" or "false", got "{given}"'
        )
    return words[given.strip().lower()]
