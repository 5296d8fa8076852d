"""From the JSON of ``"openai"`` to what vLLM's OpenAI-compatible front end runs on.

As with the engine arguments, each value goes through the very parser of ``vllm serve``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from triton_vllm.config.arguments import command_line
from triton_vllm.config.openai import OpenAISettings
from triton_vllm.errors import SettingsError

# Options of vLLM's front end that would do harm here, or nothing.
_BESIDE_TRITON = "it is for vllm serve's own processes"
REFUSED = {
    "api_key": 'keys do not belong in this file: "api_keys_env" or "api_keys_file" say where',
    "uds": 'only "host" and "port" are served',
    "grpc_port": "it is for vllm serve's Rust front end",
    "tokens_only": _BESIDE_TRITON,
    "data_parallel_supervisor_port": _BESIDE_TRITON,
    "dp_supervisor_probe_interval_s": _BESIDE_TRITON,
    "dp_supervisor_probe_timeout_s": _BESIDE_TRITON,
    "dp_supervisor_probe_failure_threshold": _BESIDE_TRITON,
}


def parse_frontend_args(
    given: Mapping[str, Any], engine_args: Any, model: str, where: str
) -> argparse.Namespace:
    """Return what ``vllm serve`` would hold after parsing these options and ``engine_args``.

    ``model`` is the model's name as the operator wrote it, ``where`` names the file and the object
    in it. Raises SettingsError, one line.
    """
    from triton_vllm.vllm_api import api as vllm_api
    from triton_vllm.vllm_api import openai_app as vllm_openai

    parser = vllm_openai.frontend_args_parser()
    hints = vllm_openai.frontend_arg_types()
    ours = {field.name: str for field in fields(OpenAISettings) if field.name != "frontend"}
    for key in given:
        if key in REFUSED:
            raise SettingsError(f'{where}: "{key}" is not allowed: {REFUSED[key]}')
        if key not in hints and key in vllm_api.engine_arg_types():
            raise SettingsError(
                f'{where}: "{key}" is an engine argument: it belongs beside "serving"'
            )
    allowed = {key: hint for key, hint in {**hints, **ours}.items() if key not in REFUSED}
    arguments: list[str] = []
    for key, value in given.items():
        for part in _parts(value, parser, key):
            arguments += command_line({key: part}, allowed, parser, where)
    try:
        return vllm_openai.complete(parser.parse_args(arguments), engine_args, model)
    except Exception as error:  # vLLM's own checks
        raise SettingsError(f"{where}: {vllm_api.as_keys(error)}") from error


def _parts(value: Any, parser: argparse.ArgumentParser, key: str) -> list[Any]:
    """Split up an array for an option that takes one value: as JSON, or given repeatedly."""
    # argparse has no public way to ask.
    action = next((a for a in parser._actions if a.dest == key), None)
    if not isinstance(value, list) or action is None or action.nargs is not None:
        return [value]
    return value if isinstance(action, argparse._AppendAction) else [json.dumps(value)]
