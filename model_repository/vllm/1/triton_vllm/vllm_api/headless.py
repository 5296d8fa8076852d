"""Print a vllm_engine_args.json as arguments of ``vllm serve --headless``, one in a line.

    python -m triton_vllm.vllm_api.headless FILE

For scripts/join_cluster.sh: so that all machines of an engine have the same arguments.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from triton_vllm.config.arguments import command_line, translate_dropped
from triton_vllm.config.files import read_json_object
from triton_vllm.config.settings import CHAT_KEYS, SERVING_KEY
from triton_vllm.errors import SettingsError


def headless_args(path: Path) -> list[str]:
    """Return the engine arguments of the file, the model first, without those of its front end.

    Raises SettingsError.
    """
    from triton_vllm.vllm_api import api as vllm_api

    given: dict[str, Any] = {
        key: value
        for key, value in read_json_object(path, "the engine arguments").items()
        if key != SERVING_KEY and key not in CHAT_KEYS
    }
    hints = vllm_api.engine_arg_types()
    parser = vllm_api.EngineArgsParser.create()
    known = hints.keys() & vars(parser.parse_args([])).keys()
    given = translate_dropped(given, known, str(path), lambda line: print(line, file=sys.stderr))
    if not given.get("model"):
        raise SettingsError(f'{path}: the key "model" is missing: a model\'s name or path')
    model = given.pop("model")
    return [model, *command_line(given, {key: hints[key] for key in known}, parser, str(path))]


def main() -> None:
    """Print the arguments of the file that the command line names."""
    (path,) = sys.argv[1:]
    try:
        print(*headless_args(Path(path)), sep="\n")
    except SettingsError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
