"""The settings' reference in the docs is what the settings say of themselves."""

from __future__ import annotations

import re

import pytest
from settings_table import ROOT, TABLES, generated, table

PAGES = {"serving": "configuration.md", "openai": "openai.md"}


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_the_settings_is_up_to_date(name: str) -> None:
    """Mend it with ``python scripts/settings_table.py --write``."""
    page = (ROOT / "docs" / PAGES[name]).read_text(encoding="utf-8")
    assert table(name) in page
    assert generated(page) == page


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_has_a_row_and_a_description(name: str) -> None:
    """Defaults and limits are those of the fields; the descriptions are sentences."""
    rows = [line.split(" | ") for line in table(name).splitlines()[2:]]
    assert rows
    for key, _, allowed, meaning in rows:
        assert re.fullmatch(r"\| `[a-z_]+`", key)
        assert allowed.startswith(("a ", "an ", "one of "))
        assert meaning[0].isupper() or meaning.startswith("`")
        assert meaning.endswith(". |")


def test_a_table_is_written_between_its_markers() -> None:
    """The text around them stays."""
    page = "a\n<!-- generated: openai -->\nold\n<!-- end generated -->\nb"
    expected = f"a\n<!-- generated: openai -->\n{table('openai')}<!-- end generated -->\nb"
    assert expected == generated(page)
