"""From the JSON of ``vllm_engine_args.json`` to a command line.

Each value goes through the very parser of ``vllm serve``: what its command line takes, the file
takes ("max_model_len": "8k"), and defaults resolve alike.
"""

from __future__ import annotations

import argparse
import json
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Union

from triton_vllm.config.flags import flags_as_keys
from triton_vllm.errors import SettingsError, did_you_mean, one_line

# Keys that vLLM once had, and what to do with their value: (new key, new value) or nothing.
_IGNORED = {"max_seq_len_to_capture", "max_context_len_to_capture", "swap_space", "device"}
_IGNORED |= {"use_v2_block_manager", "num_scheduler_steps", "engine_use_ray", "preemption_mode"}
_IGNORED |= {"disable_async_output_proc", "num_lookahead_slots"}
DROPPED: dict[str, Callable[[Any], tuple[str, Any] | None]] = {
    "disable_log_requests": lambda v: ("enable_log_requests", not is_true(v)),
    "worker_use_ray": lambda v: ("distributed_executor_backend", "ray") if is_true(v) else None,
    "guided_decoding_backend": lambda v: ("structured_outputs_config", {"backend": v}),
    **dict.fromkeys(_IGNORED, lambda v: None),
}


def is_true(value: object) -> bool:
    """Return whether a JSON boolean, or its string, is true."""
    return value is True or (isinstance(value, str) and value.strip().lower() == "true")


def command_line(
    given: Mapping[str, Any], hints: Mapping[str, Any], parser: argparse.ArgumentParser, where: str
) -> list[str]:
    """Return ``given`` as arguments of a command line, each of which ``parser`` has accepted.

    ``hints`` has the type hint of each known key. Raises SettingsError.
    """
    arguments: list[str] = []
    for key, value in given.items():
        if key not in hints:
            nearest = did_you_mean(key, hints) or "; vllm serve --help lists them"
            raise SettingsError(f'{where}: unknown key "{key}"{nearest}')
        if value is None:
            continue
        try:
            argument = as_arguments(key, value, hints[key])
            parser.parse_args(argument)
        except (argparse.ArgumentTypeError, TypeError, ValueError) as error:
            text = one_line(error).partition(" For further information visit")[0]
            if text.startswith("argument --"):  # argparse's "argument --max-num-seqs: "
                text = text.partition(": ")[2]
            reason = flags_as_keys(text, hints)
            raise SettingsError(f'{where}: "{key}": {reason}, got {json.dumps(value)}') from None
        arguments += argument
    return arguments


def translate_dropped(
    given: Mapping[str, Any],
    known: typing.AbstractSet[str],
    where: str,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Replace the keys that this vLLM no longer knows by what took their place."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        if key in known or key not in DROPPED:
            result[key] = value
        elif (new := DROPPED[key](value)) is None:
            warn(f'{where}: "{key}" is ignored: vLLM has dropped it')
        else:
            warn(f'{where}: "{key}" is read as "{new[0]}": {json.dumps(new[1])}')
            result.setdefault(*new)
    return result


def as_arguments(key: str, value: Any, hint: Any) -> list[str]:
    """Return one JSON value as command-line arguments, ``["--max-num-seqs=8"]``.

    Raises TypeError where the value's JSON type cannot be meant for a field of type ``hint``.
    """
    option = "--" + key.replace("_", "-")
    takes = json_types(hint)
    came = type(value)
    if bool in takes and (came is bool or str(value).lower() in ("true", "false")):
        return [option if is_true(value) else "--no-" + option[2:]]
    fits = came in takes or came is str or (came is int and float in takes)
    if not fits or (came is str and takes == {bool}):
        raise TypeError(f"must be {' or '.join(sorted(_JSON_NAMES[t] for t in takes))}")
    if came is dict:
        return [f"{option}={json.dumps(value)}"]
    if came is list:
        return [option, *(v if isinstance(v, str) else json.dumps(v) for v in value)]
    return [f"{option}={value}"]


_JSON_NAMES = {bool: "a boolean", int: "an integer", float: "a number", str: "a string"}
_JSON_NAMES |= {list: "an array", dict: "an object"}


def json_types(hint: Any) -> set[type]:
    """Return the JSON types (as Python types) that a field with this type hint may take."""
    if hint is Any:
        return set(_JSON_NAMES)
    origin = typing.get_origin(hint)
    members = [member for member in typing.get_args(hint) if member not in (None, type(None))]
    if origin is typing.Annotated:
        return json_types(members[0])
    if origin in (Union, types.UnionType):
        return set().union(*map(json_types, members))
    if origin is typing.Literal:
        return set(map(type, members))
    plain = origin or hint
    if plain in (list, tuple, set):
        return {list}
    if plain in (bool, int, float, str):
        return {plain}
    if not isinstance(plain, type):
        return {str}
    return {dict}  # a dict, or one of vLLM's config classes, which are built from objects
