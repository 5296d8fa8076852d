"""Wheels of nothing but what a test needs, and uv as the scripts get it."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def make_wheel(
    folder: Path,
    name: str,
    version: str,
    files: dict[str, str] | None = None,
    requires: tuple[str, ...] = (),
    extras: tuple[str, ...] = (),
) -> None:
    """Write a wheel of these files and requirements into a folder."""
    # A version's local part is part of the file's name, with its plus.
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = [f"Name: {name}", f"Version: {version}"]
    metadata += [f"Provides-Extra: {extra}" for extra in extras]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    contents = (files or {}) | {
        f"{stem}.dist-info/METADATA": "\n".join(["Metadata-Version: 2.1", *metadata, ""]),
        f"{stem}.dist-info/WHEEL": (
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = f"{stem}.dist-info/RECORD"
    lines = "".join(f"{path},,\n" for path in [*contents, record])
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for path, text in (contents | {record: lines}).items():
            wheel.writestr(path, text)


def uv_variables() -> dict[str, str]:
    """Return the variables by which gen_vllm_env.sh takes the scripts' own uv and its cache."""
    script = '. "$0"; need_uv; printf "%s\\n" "$UV" "$UV_FOLDER" "$UV_CACHE_DIR"'
    command = ["bash", "-euc", script, str(ROOT / "scripts/lib.sh")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    return dict(zip(("UV", "UV_FOLDER", "UV_CACHE_DIR"), shown.stdout.splitlines(), strict=True))
