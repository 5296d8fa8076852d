"""The package's layout: which package may import which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "model_repository/vllm/1/triton_vllm"
ORDER = ["errors", "log", "counters", "event_loop", "config", "limits", "topology"]
ORDER += ["protocol", "vllm_api", "openai_api", "engine", "metrics"]


def imports() -> Iterator[tuple[str, str]]:
    """Yield each file and a module that it imports, wherever in the file."""
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((str(file.relative_to(PACKAGE)), name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module == "triton_vllm":
                yield from (
                    (str(file.relative_to(PACKAGE)), f"triton_vllm.{name.name}")
                    for name in node.names
                )
            elif isinstance(node, ast.ImportFrom):
                yield str(file.relative_to(PACKAGE)), str(node.module)


def room(file: str) -> str:
    """Return the package, or the module on the ground floor, that a file belongs to."""
    return Path(file).parts[0].removesuffix(".py")


def test_only_one_package_imports_vllm() -> None:
    """What differs between vLLM's versions has one place."""
    others = {file for file, module in imports() if module.partition(".")[0] == "vllm"}
    assert {"vllm_api"} == {room(file) for file in others}


def test_no_package_imports_a_later_one() -> None:
    """Imports go one way, inside functions too."""
    upward = [
        (file, module)
        for file, module in imports()
        if module.startswith("triton_vllm.")
        and ORDER.index(module.split(".")[1]) > ORDER.index(room(file))
    ]
    assert [] == upward
