"""What must be known of vLLM before it is imported. Imports none of it."""

from __future__ import annotations

import glob
import os
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

MODULE = "triton_vllm.vllm_api.engine_process.engine_modules"


def engine_variables() -> dict[str, str]:
    """Return the environment variables that vLLM for CPUs sets before it starts an engine core.

    It does so when it resolves a configuration; their readers are loaded with the imports. Should
    vLLM set others some day, ``ForkServer`` notices.
    """
    if not _is_for_cpus():
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


def compile_nothing_without_a_compiler() -> bool:
    """Keep torch from compiling if it is for CPUs and there is no C++ compiler; return whether so.

    Even if it runs eagerly, vLLM for CPUs has small functions compiled when a request first needs
    them, and the engine would die. To be called before the engine core's environment is made.
    """
    if not _is_for_cpus() or shutil.which(os.environ.get("CXX", "g++")):
        return False
    return os.environ.setdefault("TORCHDYNAMO_DISABLE", "1") == "1"


def _is_for_cpus() -> bool:
    try:
        return version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def _folder(package: str) -> Path:
    """Return where a package is, without importing it."""
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else Path("/nonexistent")


def _first(folder: Path, *patterns: str) -> list[str]:
    found = [file for pattern in patterns for file in glob.glob(str(folder / pattern))]  # noqa: PTH207
    return [os.path.normpath(file) for file in found[:1]]
