"""What the fork server of the engine cores needs to know of vLLM. Imports none of it."""

from __future__ import annotations

import glob
import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MODULE = "triton_vllm.vllm_api.engine_process.engine_modules"


def engine_variables() -> dict[str, str]:
    """Return the environment variables that vLLM for CPUs sets before it starts an engine core.

    It does so when it resolves a configuration; their readers are loaded with the imports. Should
    vLLM set others some day, ``ForkServer`` notices.
    """
    try:
        if not version("torch").endswith("+cpu"):
            return {}
    except PackageNotFoundError:
        return {}
    torch = _folder("torch")
    given = os.environ.get("LD_PRELOAD", "")
    preloaded = [given] if given else []
    if not any(library in given for library in ("libomp", "libgomp", "libiomp")):
        preloaded += _first(torch, "../torch.libs/libgomp*.so*", "lib/libgomp*.so*")
    if "libtcmalloc" not in given:
        names = ("libs/libtcmalloc_minimal*.so*", "libs/libtcmalloc.so*")
        preloaded = _first(_folder("vllm"), *names) + preloaded
    return {"LD_PRELOAD": ":".join(preloaded), "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1"}


def _folder(package: str) -> Path:
    """Return where a package is, without importing it."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


def _first(folder: Path, *patterns: str) -> list[str]:
    found = [file for pattern in patterns for file in glob.glob(str(folder / pattern))]  # noqa: PTH207
    return [os.path.normpath(file) for file in found[:1]]
