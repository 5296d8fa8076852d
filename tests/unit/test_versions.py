"""How a module that vLLM has moved is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_vllm.vllm_api.versions import first


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
