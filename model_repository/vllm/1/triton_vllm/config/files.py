"""Reads the operator's files, and reports those that this process may not read."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triton_vllm.errors import SettingsError

# What vLLM reads in a model's folder.
_MODEL_FILES = {".bin", ".gguf", ".jinja", ".json", ".model", ".pt", ".pth", ".safetensors", ".txt"}


def read_json_object(path: Path, content: str) -> dict[str, Any]:
    """Read a JSON object. Raises SettingsError with the file, line and column.

    ``content`` describes the file in the error for a missing one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file; it holds {content}") from None
    except PermissionError:
        raise SettingsError(unreadable(path)) from None
    except json.JSONDecodeError as error:
        raise SettingsError(
            f"{path}: not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        ) from None
    except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: must hold a JSON object, holds {type(value).__name__}")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f'the key "{key}" is given twice')
    return dict(pairs)


def model_file(directory: Path, version: str, name: str, backends_name: str) -> Path:
    """Return the model's file ``name``, or ``backends_name`` of the version's folder if it exists.

    Raises SettingsError if both exist.
    """
    own, backends = directory / name, directory / version / backends_name
    if own.exists() and backends.exists():
        raise SettingsError(f"{backends}: {own} exists too: keep one of the two")
    return backends if backends.exists() else own


def check_readable(given: Mapping[str, Any], where: str, folder: Path = Path()) -> None:
    """Raise SettingsError if a value in ``given`` is a path that this process may not read.

    vLLM and its libraries call such a file missing. In a folder, such as a model's or an adapter's,
    the files that vLLM reads are checked. Relative paths start in ``folder``.
    """
    for key, value in given.items():
        if isinstance(value, Mapping):
            check_readable(value, where, folder)
        elif isinstance(value, str) and value and (refused := _refused(folder, value)):
            raise SettingsError(f'{where}: "{key}": {unreadable(refused)}')


def unreadable(path: Path) -> str:
    """Return the error for a path that this process may not read."""
    return f"{path}: not readable for uid {os.geteuid()}"


def _refused(folder: Path, text: str) -> Path | None:
    """Return the path ``text`` or the file in it that may not be read, None if there is none."""
    try:
        path = folder / Path(text).expanduser()
        inside = path.iterdir() if stat.S_ISDIR(path.stat().st_mode) else ()
        found = [path, *(file for file in inside if file.suffix in _MODEL_FILES and file.exists())]
    except PermissionError:
        return path
    except (OSError, ValueError, RuntimeError):  # the text is no path that exists
        return None
    return next((f for f in found if not os.access(f, os.R_OK, effective_ids=True)), None)
