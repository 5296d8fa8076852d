"""From the JSON of ``vllm_engine_args.json`` to vLLM's ``AsyncEngineArgs``, or to a command line.

    python -m triton_vllm.vllm_api.arguments FILE

prints the file as arguments of ``vllm serve --headless``, one in a line. scripts/join_cluster.sh
calls it, so that all nodes of an engine have the same arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from triton_vllm.config.arguments import command_line, translate_dropped
from triton_vllm.config.files import read_json_object
from triton_vllm.config.settings import CHAT_KEYS, SERVING_KEY
from triton_vllm.errors import SettingsError
from triton_vllm.vllm_api import api as vllm_api


def parse_engine_args(
    given: Mapping[str, object], where: str, warn: Callable[[str], None]
) -> vllm_api.AsyncEngineArgs:
    """Build vLLM's ``AsyncEngineArgs`` from the JSON object in the file ``where``.

    Strings are converted by the field's type ("true", "0.5"); ``null`` means vLLM's default; a key
    that vLLM dropped is translated or ignored, with a warning. Raises SettingsError, one line with
    file, key and what is allowed.
    """
    parser = vllm_api.EngineArgsParser.create()
    arguments = engine_command_line(given, where, warn)
    try:
        return vllm_api.AsyncEngineArgs.from_cli_args(parser.parse_args(arguments))
    except Exception as error:  # vLLM's own checks; offline it also looks for the model here
        reason = vllm_api.as_keys(error)
        raise SettingsError(f'{where}: model "{given["model"]}": {reason}') from error


def engine_command_line(
    given: Mapping[str, object], where: str, warn: Callable[[str], None]
) -> list[str]:
    """Return the file's engine arguments as vLLM's command line has them. Raises SettingsError."""
    hints = vllm_api.engine_arg_types()
    parser = vllm_api.EngineArgsParser.create()
    known = hints.keys() & vars(parser.parse_args([])).keys()
    translated = translate_dropped(given, known, where, warn)
    arguments = command_line(translated, {key: hints[key] for key in known}, parser, where)
    if not translated.get("model"):
        raise SettingsError(f'{where}: the key "model" is missing: a model\'s name or path')
    return arguments


def headless_args(path: Path) -> list[str]:
    """Return the file's engine arguments, the model first, for a node without a front end."""
    given = {
        key: value
        for key, value in read_json_object(path, "the engine arguments").items()
        if key != SERVING_KEY and key not in CHAT_KEYS
    }
    arguments = engine_command_line(given, str(path), lambda line: print(line, file=sys.stderr))
    model = next(a for a in arguments if a.startswith("--model="))
    arguments.remove(model)  # vllm serve has no such option
    return [model.removeprefix("--model="), *arguments]


def main() -> None:
    """Print the arguments of the file that the command line names."""
    (path,) = sys.argv[1:]
    try:
        print(*headless_args(Path(path)), sep="\n")
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
