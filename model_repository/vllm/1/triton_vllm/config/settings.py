"""What the operator wrote: ``vllm_engine_args.json`` and Triton's arguments to the model.

The file holds vLLM's engine arguments under vLLM's own names, and one object of ours,
``"serving"``, for what lies between vLLM and Triton. Triton's own vLLM backend calls it
``model.json`` and has it in the version's folder; there it is found too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from triton_vllm.config.openai import OPENAI_KEY, OpenAISettings
from triton_vllm.config.placement import Placement
from triton_vllm.errors import SettingsError, did_you_mean

ENGINE_ARGS_FILE = "vllm_engine_args.json"
BACKEND_ENGINE_ARGS_FILE = "model.json"
SERVING_KEY = "serving"
# Of vLLM's front end, not of its engine: they stand beside the engine arguments, as on the command
# line of ``vllm serve``. ``reasoning_parser`` is an engine argument by itself.
CHAT_KEYS = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "enable_auto_tool_choice",
    "exclude_tools_when_tool_choice_none",
    "tool_call_parser",
    "tool_parser_plugin",
    "tool_strict_level",
)
METRICS_PARAMETER = "REPORT_CUSTOM_METRICS"


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """The ``"serving"`` object of ``vllm_engine_args.json``. Times are in seconds.

    ``sender_threads`` send responses, in each front end (0: eight over all front ends, at most
    four in each).
    ``max_tokens_per_response`` bounds the merging of deltas when a client or the send path lags
    (0: no bound). ``cancellation_poll_seconds`` is how often live requests are asked whether their
    client is gone. ``default_max_tokens`` applies to requests without ``max_tokens`` (0: the
    model's own default, else up to its context, as in ``vllm serve``).
    ``metrics_interval_seconds`` is how often metrics are passed on to Triton. ``engine_cpu_affinity`` is a
    Linux CPU list, such as "0-1", that the engine core has to itself (empty: no choice is made).
    ``max_engine_restarts`` is how many tries in a row are made to restart an engine that died.
    ``vllm_log_level`` is for vLLM's own lines (empty: its default, or its environment variable).
    ``max_concurrent_requests`` bounds the requests that run or wait, over all front ends, each of which takes
    its share; ``max_queued_tokens`` the prompt tokens that wait for their prefill in one front end:
    above them a request is refused (0: no limit). ``max_n`` bounds ``n``, by
    which one request becomes many (0: vLLM's own limit). ``default_timeout_seconds`` bounds a
    request that sets no limit of its own, from its arrival to its end (0: no limit).
    ``drain_timeout_seconds`` is how long running requests may go on when the model is unloaded or the
    server stopped.
    ``grammar_compile_timeout_seconds`` is how long a grammar of structured outputs may take to compile (0:
    no limit, and no process to try it in). ``cluster_join_timeout_seconds`` is how long the start of an
    engine on several machines waits for the others.
    ``openai`` opens a port for OpenAI's protocol (None: no port).
    """

    sender_threads: int = 0
    max_tokens_per_response: int = 0
    cancellation_poll_seconds: float = 0.1
    default_max_tokens: int = 0
    metrics_interval_seconds: float = 2.0
    max_engine_restarts: int = 5
    engine_cpu_affinity: str = ""
    vllm_log_level: str = ""
    max_concurrent_requests: int = 0
    max_queued_tokens: int = 0
    max_n: int = 128
    default_timeout_seconds: float = 0.0
    drain_timeout_seconds: float = 20.0
    grammar_compile_timeout_seconds: float = 5.0
    cluster_join_timeout_seconds: float = 600.0
    openai: OpenAISettings | None = None

    LIMITS = {  # noqa: RUF012 (a class constant, and not a field: it has no annotation)
        "sender_threads": (0, 64),
        "max_tokens_per_response": (0, 1_000_000),
        "cancellation_poll_seconds": (0.01, 60),
        "default_max_tokens": (0, 10_000_000),
        "metrics_interval_seconds": (0.1, 60),
        "max_engine_restarts": (0, 1000),
        "max_concurrent_requests": (0, 1_000_000),
        "max_queued_tokens": (0, 1_000_000_000),
        "max_n": (0, 1_000_000),
        "default_timeout_seconds": (0, 86_400),
        "drain_timeout_seconds": (0, 3600),
        "grammar_compile_timeout_seconds": (0, 3600),
        "cluster_join_timeout_seconds": (1, 86_400),
    }
    LOG_LEVELS = ("", "DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")  # as above

    @classmethod
    def from_json(cls, given: object, where: str) -> ServingSettings:
        """Check the object ``given`` that stands in the file ``where``.

        Raises SettingsError for an unknown key, a wrong type or a number out of range.
        """
        if not isinstance(given, dict):
            raise SettingsError(f'{where}: "{SERVING_KEY}" must be an object, got {given!r}')
        types = {f.name: type(f.default) for f in fields(cls)}
        for key, value in given.items():
            if key not in types:
                raise SettingsError(
                    f'{where}: "{SERVING_KEY}" has the unknown key "{key}"'
                    + (did_you_mean(key, types) or f", allowed: {', '.join(types)}")
                )
            if key == OPENAI_KEY:
                continue
            if types[key] is str:
                if not isinstance(value, str):
                    raise SettingsError(
                        f'{where}: "{SERVING_KEY}.{key}" must be a string, got {value!r}'
                    )
                if key == "vllm_log_level" and value not in cls.LOG_LEVELS:
                    raise SettingsError(
                        f'{where}: "{SERVING_KEY}.{key}" must be one of '
                        f'{", ".join(filter(None, cls.LOG_LEVELS))}, got "{value}"'
                    )
                continue
            low, high = cls.LIMITS[key]
            allowed = (int, float) if types[key] is float else (int,)
            fits = isinstance(value, allowed) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise SettingsError(
                    f'{where}: "{SERVING_KEY}.{key}" must be {types[key].__name__} from {low} to '
                    f"{high}, got {value!r}"
                )
        values = dict(given)
        if OPENAI_KEY in given:
            openai_where = f'{where}: "{SERVING_KEY}.{OPENAI_KEY}"'
            values[OPENAI_KEY] = OpenAISettings.from_json(given[OPENAI_KEY], openai_where)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Everything that ``initialize`` needs to know.

    ``engine_args`` and ``chat`` are as written in the file; ``placement`` says on which GPUs, and
    how many processes share an engine. ``report_metrics`` is false where config.pbtxt has the
    parameter REPORT_CUSTOM_METRICS, with "false".
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
        """How many processes share this one's engine."""
        return self.placement.front_ends

    @property
    def sender_threads(self) -> int:
        """How many sender threads each front end has.

        Eight over all front ends kept the engine the bottleneck with one to eight of them (H100,
        256 streams, 2026-11-22; docs/architecture.md); more only fight for the interpreter.
        """
        return self.serving.sender_threads or min(4, max(1, 8 // self.front_ends))

    @property
    def engine_args_path(self) -> Path:
        """The file that the engine arguments came from."""
        return _engine_args_path(self.directory, self.version)

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
                f"{where}: model_transaction_policy {{ decoupled: true }} is missing: a stream has "
                "many responses to one request"
            )
        path = _engine_args_path(directory, args["model_version"])
        engine_args = read_json_object(path)
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


def _engine_args_path(directory: Path, version: str) -> Path:
    """Return the file with the engine arguments: by our name, or by that of Triton's backend."""
    ours, backends = directory / ENGINE_ARGS_FILE, directory / version / BACKEND_ENGINE_ARGS_FILE
    if ours.exists() and backends.exists():
        raise SettingsError(f"{backends}: {ours} is there, too: keep one of the two")
    return backends if backends.exists() else ours


def _report_metrics(config: Mapping[str, Any], where: Path) -> bool:
    """Return the parameter that Triton's own vLLM backend knows, too; here the default is true."""
    given = config.get("parameters", {}).get(METRICS_PARAMETER, {}).get("string_value", "true")
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if given.strip().lower() not in words:
        raise SettingsError(
            f'{where}: parameter {METRICS_PARAMETER} must be "true" or "false", got "{given}"'
        )
    return words[given.strip().lower()]


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises SettingsError naming the file, line and column."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise SettingsError(
            f'{path}: missing; it holds the engine arguments, at least {{"model": "..."}}'
        ) from None
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: must hold a JSON object, holds {type(content).__name__}")
    return content


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f'the key "{key}" stands there twice')
    return dict(pairs)
