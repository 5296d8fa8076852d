"""The real Triton serving the echo model: for tests of clients, and of Triton itself.

TRITON_SERVER_DIR names the folder that holds bin/tritonserver (default: where
scripts/get_triton.sh puts it). The Python backend's stub runs this interpreter's libpython with
the site-packages of the `python3` first in PATH (it ignores PYTHONPATH) and needs numpy < 2 there:
this environment, or else a virtual environment made for the session.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.model_folder import CACHE, TRITON
from tests.e2e.processes import OWN_GROUP, free_ports

START_SECONDS = 120
STOP_SECONDS = 20
TOKEN_COUNT_TENSORS = """
input [ { name: "return_num_output_tokens" data_type: TYPE_BOOL dims: [ 1 ] optional: true } ]
output [ { name: "num_output_tokens" data_type: TYPE_UINT32 dims: [ -1 ] } ]
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running tritonserver: where it listens and what it logs."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def await_log(self, line: str, seconds: float = 20) -> bool:
        end = time.monotonic() + seconds
        while line not in self.log.read_text(errors="replace"):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


def put_stub_in_place() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = TRITON / "backends/python/triton_python_backend_stub"
    if not stub.exists():
        shutil.copy2(TRITON / f"python_backend_stubs/{version}" / stub.name, stub)
        stub.chmod(0o755)


def python_for_stub() -> Path:
    """Return the prefix of a Python of our minor that has numpy < 2; it stays in the cache."""
    if int(np.__version__.partition(".")[0]) < 2:
        return Path(sys.prefix)
    folder = CACHE / f"stub-python-{sys.version_info.major}.{sys.version_info.minor}"
    if not (folder / "made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--quiet", "numpy==1.26.4"]
        subprocess.run(pip, check=True, timeout=300)
        (folder / "made").touch()
    return folder


def make_repository(folder: Path) -> None:
    """Put three echo models there: `vllm`, `counted` (token counts), `other` (other names)."""
    source = Path(__file__).parent / "echo_model"
    for name in ("vllm", "counted", "other"):
        shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    config = folder / "counted/config.pbtxt"
    config.write_text(config.read_text() + TOKEN_COUNT_TENSORS)
    config = folder / "other/config.pbtxt"
    config.write_text(config.read_text().replace("text_input", "PROMPT"))


@contextlib.contextmanager
def serving(folder: Path, prefix: Path, *options: str) -> Iterator[Server]:
    """Run tritonserver on loopback with ``options``; stop it at the end, by force if need be."""
    http, grpc = free_ports(2)
    models, log = folder / "models", folder / "triton.log"
    make_repository(models)
    command = [str(TRITON / "bin/tritonserver"), f"--model-store={models}"]
    command += [f"--backend-directory={TRITON / 'backends'}", "--allow-metrics=false"]
    command += ["--http-address=127.0.0.1", f"--http-port={http}"]
    command += [
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--exit-timeout-secs=5",
        *options,
    ]
    shared_memory = f"client_test_{os.getpid()}_{grpc}_"
    command += [f"--backend-config=python,shm-region-prefix-name={shared_memory}"]
    libraries = f"{sysconfig.get_config_var('LIBDIR')}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    path = f"{prefix / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"LD_LIBRARY_PATH": libraries, "PATH": path}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=environment, **OWN_GROUP
        )
    try:
        await_ready(process, f"http://127.0.0.1:{http}/v2/health/ready", log)
        yield Server(f"127.0.0.1:{grpc}", process, log)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
        # A server that was killed leaves its stubs and their shared memory behind.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for left in Path("/dev/shm").glob(f"{shared_memory}*"):
            left.unlink()


def await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=1):
            return
        time.sleep(0.1)
    pytest.fail(f"tritonserver did not get ready:\n{log.read_text(errors='replace')[-4000:]}")
