"""The server as the Helm chart's pods run it: user 1000, no capabilities, a read-only root.

A mount namespace stands in for the container: needs root, unshare and setpriv.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.model_folder import CHECKPOINT, EXECUTION_ENV, TRITON, add_model, use_front_ends
from tests.e2e.triton_server import running

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]

# /tmp and /dev/shm are mounts of their own in the pod; its /cache lies in /tmp here.
CONTAINER = """
mount --make-rprivate / && mount --bind /tmp /tmp && mount -o remount,bind,ro / || exit 99
exec setpriv --reuid=1000 --regid=1000 --clear-groups --inh-caps=-all --bounding-set=-all \
    --no-new-privs "$@"
"""
IN_CONTAINER = ("unshare", "--mount", "sh", "-c", CONTAINER, "container")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    missing = [name for name in ("unshare", "setpriv") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")
    needed = [CHECKPOINT / "config.json", TRITON / "bin/tritonserver", EXECUTION_ENV / "bin/python"]
    command = " && ".join(f"test -r '{path}'" for path in needed)
    tried = subprocess.run(
        [*IN_CONTAINER, "sh", "-c", command], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(
            "needs root in a mount namespace, and files that user 1000 may read: " + tried.stderr
        )
    with tempfile.TemporaryDirectory(prefix="triton_vllm_test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def test_a_read_only_root_file_system(folder: Path) -> None:
    """Two front ends serve and end cleanly, and no process needs another writable path."""
    model = add_model(folder / "models")
    use_front_ends(model, 2)
    for path in (folder / "models", *(folder / "models").rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    cache = folder / "cache"
    cache.mkdir()
    shutil.chown(cache, 1000, 1000)
    # As the Dockerfile and the chart set them.
    variables = {
        "HOME": str(cache),
        "HF_HOME": f"{cache}/huggingface",
        "VLLM_CACHE_ROOT": f"{cache}/vllm",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with running(
        folder / "models", "read_only", "vllm", variables=variables, prefix=IN_CONTAINER
    ) as server:
        assert 2 == len(server.processes("triton_python_backend_stub"))
        process = Path(f"/proc/{server.process.pid}")
        mounts = [line.split() for line in (process / "mountinfo").read_text().splitlines()]
        assert {"ro"} == {m[5].split(",")[0] for m in mounts if m[4] == "/"}
        assert "Uid:\t1000\t1000\t1000\t1000" in (process / "status").read_text()
        parameters = {"temperature": 0, "max_tokens": 5}
        body = {"text_input": "The capital of France is", "parameters": parameters}
        status, text = server.post("v2/models/vllm/generate", body)
        assert (200, True) == (status, "Paris" in json.loads(text)["text_output"])
    log = server.log.read_text(errors="replace")
    assert "Read-only file system" not in log
    assert "Permission denied" not in log
