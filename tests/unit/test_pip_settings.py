"""scripts/pip_settings.py: what pip's settings become for uv."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pip_settings
import pytest

SCRIPT = Path(pip_settings.__file__)


def printed(**variables: str) -> dict[str, str]:
    """Return what the script prints with these variables and no configuration file of pip's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    environment = kept | {"PIP_CONFIG_FILE": os.devnull} | variables
    shown = subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    return dict(line.split("=", 1) for line in shown.stdout.splitlines())


def test_a_mirror_and_a_second_index() -> None:
    """The index, further indexes and folders of wheels are given in uv's notation."""
    shown = printed(
        PIP_INDEX_URL="https://mirror.example/simple",
        PIP_EXTRA_INDEX_URL="https://a.example/x https://b.example/y",
        PIP_FIND_LINKS="/wheels /more",
    )
    expected = {
        "UV_DEFAULT_INDEX": "https://mirror.example/simple",
        "UV_INDEX": "https://a.example/x https://b.example/y",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }
    assert expected == {name: shown[name] for name in expected}


def test_no_index_stays_offline() -> None:
    """Where pip may ask no index, uv may not either."""
    assert "1" == printed(PIP_NO_INDEX="1", PIP_FIND_LINKS="/wheels")["UV_NO_INDEX"]


def test_variables_of_uv_come_first() -> None:
    """A variable of uv's that is set is not printed, nor one that is set by its older name."""
    shown = printed(
        PIP_INDEX_URL="https://mirror.example/simple",
        PIP_EXTRA_INDEX_URL="https://a.example/x",
        UV_DEFAULT_INDEX="https://other.example/simple",
        UV_EXTRA_INDEX_URL="https://b.example/y",
    )
    assert shown.keys().isdisjoint({"UV_DEFAULT_INDEX", "UV_INDEX"})


def test_settings_of_a_file(tmp_path: Path) -> None:
    """A configuration file counts, and a variable overrides it, as in pip."""
    file = tmp_path / "pip.conf"
    file.write_text(
        "[global]\nindex-url = https://file.example/simple\ntimeout = 7\n"
        "[install]\nfind-links =\n  /one\n  /two\n"
    )
    shown = printed(PIP_CONFIG_FILE=str(file), PIP_DEFAULT_TIMEOUT="9")
    assert "https://file.example/simple" == shown["UV_DEFAULT_INDEX"]
    assert "/one,/two" == shown["UV_FIND_LINKS"]


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        ("", {}),
        ("global.timeout='5'\n:env:.timeout='6'", {"timeout": "6"}),
        (":env:.index-url='https://e'\nglobal.index-url='https://g'", {"index-url": "https://e"}),
        ("download.timeout='5'\nwarnings of another kind", {}),
    ],
    ids=["nothing", "a variable last", "a variable first", "another command's"],
)
def test_listing(listing: str, expected: dict[str, str]) -> None:
    """The sections count in pip's order, whatever the order of the lines."""
    assert expected == pip_settings.parse_listing(listing)


def test_without_pip_the_variables_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter without pip has no listing; PIP_... variables hold all the same."""
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    settings = pip_settings.pip_settings("/bin/false")
    assert "https://mirror.example/simple" == settings["index-url"]
