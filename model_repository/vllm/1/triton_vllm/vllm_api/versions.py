"""What differs between the supported versions of vLLM, 0.26 to 0.33. Imports no vLLM by itself."""

from __future__ import annotations

import importlib
from types import ModuleType

from triton_vllm.errors import SettingsError, one_line

SUPPORTED = "0.26 to 0.33"


def first(*modules: str) -> ModuleType:
    """Import the first of ``modules`` that exists, the newest vLLM's name first.

    Raises ImportError for a module that exists and cannot be imported, as where a package that it
    needs is missing.
    """
    for name in modules[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
    return importlib.import_module(modules[-1])


def unusable_vllm(error: ImportError) -> SettingsError:
    """Return the error for a vLLM whose import failed: what was found in its place, and why."""
    import vllm

    found = getattr(vllm, "__version__", None)
    what = f"vLLM {found}" if found else f"{list(vllm.__path__)}, which is not vLLM"
    return SettingsError(
        f"import vllm found {what}; needed is vLLM {SUPPORTED} in the execution environment "
        f"({one_line(error)})"
    )
