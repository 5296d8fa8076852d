"""A model of another shape: a copy of a model's folder without its weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", ".*")


def reshape(model: Path, shape: Mapping[str, Any], folder: Path) -> Path:
    """Copy ``model`` to ``folder``, with the keys of ``shape`` in its config.json; return the copy.

    It has no weights: load it with random ones. Raises OSError if ``model`` is no folder or has no
    config.json.
    """
    config = json.loads((model / "config.json").read_text())
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, folder, ignore=lambda path, names: _left_out(model, path, names))
    (folder / "config.json").write_text(json.dumps({**config, **shape}, indent=1))
    return folder


def _left_out(model: Path, path: str, names: list[str]) -> set[str]:
    """Leave out weights, and folders: a checkpoint's are for other programs, with other weights."""
    weights = shutil.ignore_patterns(*_WEIGHTS)(path, names)
    return weights | {name for name in names if (model / name).is_dir()}
