"""scripts/install_backend.sh: what it puts where, and what it keeps."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "model_repository/vllm/1/triton_vllm"


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """A folder of backends that has Triton's Python backend."""
    (tmp_path / "backends/python").mkdir(parents=True)
    return tmp_path / "backends"


def install(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / "scripts/install_backend.sh"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_model_and_its_package_are_installed(backends: Path) -> None:
    """The folder has what Triton imports and nothing else; a second run updates it."""
    assert 0 == install(backends).returncode
    (backends / "vllm/model.py").write_text("old")
    assert 0 == install(backends).returncode
    installed = backends / "vllm/triton_vllm"
    files = {str(path.relative_to(installed)) for path in installed.rglob("*") if path.is_file()}
    assert {str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py")} == files
    assert {"model.py", "triton_vllm"} == {path.name for path in (backends / "vllm").iterdir()}
    assert (PACKAGE.parent / "model.py").read_text() == (backends / "vllm/model.py").read_text()
    assert {"python", "vllm"} == {path.name for path in backends.iterdir()}


@pytest.mark.parametrize("packed", [True, False], ids=["archive", "folder"])
def test_the_environment_is_linked(backends: Path, tmp_path: Path, packed: bool) -> None:
    """Triton looks for it under one name, whatever it is."""
    environment = tmp_path / "vllm_env"
    if packed:
        environment.touch()
    else:
        (environment / "bin").mkdir(parents=True)
        (environment / "bin/activate").touch()
    assert 0 == install("--env", environment, backends).returncode
    assert environment == (backends / "vllm/pb_exec_env_model.py.tar.gz").resolve()


def test_the_backend_that_was_there_is_kept(backends: Path) -> None:
    """Triton's own is moved aside, once."""
    (backends / "vllm").mkdir()
    (backends / "vllm/model.py").write_text("theirs")
    done = install(backends)
    assert (0, True) == (done.returncode, "is kept as" in done.stderr)
    assert 0 == install(backends).returncode
    assert "theirs" == (backends / "vllm.before/model.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/nonexistent"], "/nonexistent/python is missing"),
        (["--env", "/nonexistent"], "/nonexistent is neither an archive nor an environment"),
        (["--env"], "--env wants a path"),
        (["--environment"], "unknown option --environment"),
    ],
    ids=["no backends", "no environment", "no value", "unknown option"],
)
def test_a_mistake_is_said_and_nothing_written(
    backends: Path, arguments: list[str], expected: str
) -> None:
    """The script ends before it has changed anything."""
    done = install(*arguments, *([backends] if arguments[0] == "--env" and arguments[1:] else []))
    assert done.returncode != 0
    assert expected in done.stderr
    assert ["python"] == [path.name for path in backends.iterdir()]
