"""A certificate of our own, made by the command that docs/openai.md shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.e2e.model_folder import ROOT


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for loopback; return it and its key."""
    text = (ROOT / "docs/openai.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\n(openssl .*?)^```$", text, re.MULTILINE | re.DOTALL)
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, capture_output=True)
    return folder / "server.crt", folder / "server.key"
