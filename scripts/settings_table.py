"""Print the reference tables of the settings, or write them into the docs.

    python scripts/settings_table.py [--write]

A page holds a table between ``<!-- generated: serving -->`` or ``<!-- generated: openai -->`` and
``<!-- end generated -->``. tests/unit/test_configuration_doc.py compares.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import json
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "model_repository/vllm/1"))

from triton_vllm.config.openai import OpenAISettings  # noqa: E402
from triton_vllm.config.settings import ServingSettings  # noqa: E402
from triton_vllm.config.validation import allowed  # noqa: E402

TABLES = {"serving": ServingSettings, "openai": OpenAISettings}
BLOCK = re.compile(
    r"(?<=<!-- generated: (serving) -->\n).*?(?=<!-- end generated -->)"
    r"|(?<=<!-- generated: (openai) -->\n).*?(?=<!-- end generated -->)",
    re.DOTALL,
)


def descriptions(kind: type) -> dict[str, str]:
    """Return the text below each field of a dataclass."""
    (definition,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(text.value.value.split())
        for field, text in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def table(name: str) -> str:
    """Return the Markdown table of the settings of ``"serving"`` or ``"openai"``."""
    kind = TABLES[name]
    lines = ["| Key | Default | Allowed | Meaning |", "|---|---|---|---|"]
    meanings = descriptions(kind)
    for setting in fields(kind):
        if meaning := meanings.get(setting.name):
            missing = setting.default is MISSING or setting.default is None
            default = "" if missing else f"`{json.dumps(setting.default)}`"
            lines.append(
                f"| `{setting.name}` | {default} | {allowed(kind, setting.name)} | {meaning} |"
            )
    return "\n".join(lines) + "\n"


def generated(page: str) -> str:
    """Return the text of a page with its tables as they should be."""
    return BLOCK.sub(lambda block: table(block[1] or block[2]), page)


def main() -> None:
    """Print the tables, or write them into the pages that have the markers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--write", action="store_true", help="write them into docs/*.md")
    if not parser.parse_args().write:
        sys.stdout.write("\n".join(table(name) for name in TABLES))
        return
    for path in (ROOT / "docs").rglob("*.md"):
        path.write_text(generated(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
