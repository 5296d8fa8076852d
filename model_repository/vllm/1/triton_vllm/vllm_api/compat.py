"""What vLLM has moved between 0.26 and 0.32, looked for where the newer has it, then the older."""

from __future__ import annotations

import importlib
from types import ModuleType


def first(*modules: str) -> ModuleType:
    """Import the first of ``modules`` that there is."""
    for name in modules[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(modules[-1])


chat_utils = first("vllm.renderers.chat_utils", "vllm.entrypoints.chat_utils")
