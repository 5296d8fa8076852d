"""One engine on two machines, through Ray and through vLLM itself; one of them is lost.

The machines are this one and a network namespace of it: needs root. Ray is looked for in
TRITON_VLLM_RAY, where scripts/test.sh --all installs it. What was seen: docs/multi-node.md.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster_network import HEAD, NODE, joined, two_machines, why_not, write_plugins
from tests.e2e.grpc_requests import Request, ask, sampling
from tests.e2e.model_folder import CACHE, add_model
from tests.e2e.processes import free_ports
from tests.e2e.tiny_models import SMALL, TinyModels
from tests.e2e.triton_server import TritonFaultError, TritonServer, running

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]

RAY = Path(os.environ.get("TRITON_VLLM_RAY", CACHE / "ray"))
RAY_NODE = ("--num-gpus=1", "--num-cpus=2", "--object-store-memory=100000000")
QUIET = "--include-dashboard=false"
# On each of two machines that are one: vLLM is imported twice, the launcher's look at its arguments
# included, and a cold import takes a minute on a busy one.
JOIN_SECONDS = 400
LOST_SECONDS = 120  # a ping of 10, a patience of 60, and a slow machine


@pytest.fixture(scope="module", autouse=True)
def _machines() -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    with two_machines():
        yield


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What all processes of both machines have in their environment."""
    plugins = write_plugins(tmp_path_factory.mktemp("cluster") / "plugins")
    return {
        "PYTHONPATH": f"{RAY}:{plugins}",
        "GLOO_SOCKET_IFNAME": "tvllmbr0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # Ray gives its workers 15, with which a busy machine leaves them no time to import vLLM.
        "RAY_worker_niceness": "0",
    }


def add(repository: Path, tiny: TinyModels, name: str, timeout: float, **args: Any) -> Path:
    """Add the tiny chat model, on two machines."""
    serving = {"cluster_join_timeout_seconds": timeout, "metrics_interval_seconds": 0.5}
    content = SMALL | {"model": str(tiny.checkpoints / "chat"), "serving": serving} | args
    return add_model(repository, name, engine_args=json.dumps(content))


def assert_answers_right(
    server: TritonServer, tiny: TinyModels, model: str, ranks: tuple[int | None, ...] = (None,)
) -> None:
    """The model says what transformers says, from every rank."""
    for rank in ranks:
        for prompt, expected in tiny.expected["greedy"].items():
            options = {} if rank is None else {"data_parallel_rank": rank}
            inputs = {
                "text_input": prompt,
                "return_output_ids": True,
                "sampling_parameters": sampling(max_tokens=12, min_tokens=12, **options),
            }
            (response,) = [r for r in ask(server, inputs, model=model) if r.outputs or r.error]
            assert not response.error, response.error
            assert expected == [int(token) for token in response.outputs["output_ids"]]


def long_request(server: TritonServer, model: str, **options: Any) -> Request:
    """Start a request that runs longer than the test needs it."""
    parameters = sampling(max_tokens=480, ignore_eos=True, **options)
    inputs = {"text_input": "x", "stream": True, "sampling_parameters": parameters}
    return Request(server, inputs, model=model)


def again_after_tritons_fault(test: Callable[..., None]) -> Callable[..., None]:
    """Let Triton 24.10 fail once, as it does on an overloaded machine: two are one here."""

    @functools.wraps(test)
    def run(tmp_path: Path, **fixtures: Any) -> None:
        try:
            test(tmp_path=tmp_path, **fixtures)
        except TritonFaultError as fault:
            print(f"the test begins again: {fault}", file=sys.stderr)
            shutil.rmtree(tmp_path)
            tmp_path.mkdir()
            test(tmp_path=tmp_path, **fixtures)

    return run


@again_after_tritons_fault
def test_ray(tiny: TinyModels, tmp_path: Path, variables: dict[str, str]) -> None:
    """A worker on each node of Ray. The load waits for the second; a lost one is a death."""
    if not (RAY / "ray").is_dir():
        pytest.skip(f"no Ray in {RAY}: scripts/test.sh --all installs it")
    port = next(port for port in free_ports(40) if port >= 20_000)  # below are Ray's workers'
    address = f"{HEAD}:{port}"
    head_options = ("ray", "--head", f"--node-ip-address={HEAD}", f"--port={port}", *RAY_NODE)
    node_options = ("ray", address, f"--node-ip-address={NODE}", *RAY_NODE)
    ray = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
    models = {"late": 8, "ray": JOIN_SECONDS}
    for model in [add(tmp_path, tiny, name, timeout, **ray) for name, timeout in models.items()]:
        # Triton's stub ignores PYTHONPATH. An environment that has Ray needs none of this.
        code = model / "1/model.py"
        path = f"import sys\n\nsys.path += {variables['PYTHONPATH'].split(':')}\n"
        before, first, after = code.read_text().partition("from typing import Any\n")
        assert first
        code.write_text(before + path + first + after)
    here = variables | {"RAY_ADDRESS": address, "VLLM_HOST_IP": HEAD}
    with (
        # Ray's sockets have their paths in it, and those are short.
        tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as files,
        joined(
            "ray_head", here, *head_options, f"--temp-dir={files}", QUIET, on_node=False
        ) as head,
        running(tmp_path, "cluster_ray", variables=here) as server,
    ):
        head.await_line("Ray runtime started", 60)
        error = server.load("late")
        missing = f"the Ray cluster has 1 of 2 GPUs free, on 1 node ({HEAD} with 1)"
        assert f'{missing} within 8 s ("serving.cluster_join_timeout_seconds")' in error
        there = variables | {"VLLM_HOST_IP": NODE}
        with joined("ray_node", there, *node_options) as node:
            node.await_line("Ray runtime started", 60)
            assert "" == server.load("ray", JOIN_SECONDS)
            assert_answers_right(server, tiny, "ray")
            with long_request(server, "ray") as request:
                assert not request.next().error
                since = server.log_size()
                node.kill()
                assert "the engine died" in request.all(LOST_SECONDS)[-1].error
        server.await_log("Waiting for creating a placement group", since=since, seconds=60)
        (refused,) = ask(server, {"text_input": "x"}, model="ray")
        assert "is being restarted" in refused.error
        with joined("ray_node_again", there, *node_options):
            server.await_log(": engine restarted (", since=since, seconds=JOIN_SECONDS)
            assert_answers_right(server, tiny, "ray")
            server.unload("ray")
            server.await_state("ray", "UNAVAILABLE", 60)


@again_after_tritons_fault
def test_data_parallel_engines(tiny: TinyModels, tmp_path: Path, variables: dict[str, str]) -> None:
    """A rank on each machine, joined by vLLM itself, which would not notice a lost one."""
    (port,) = free_ports(1)
    args = {
        "data_parallel_size": 2,
        "data_parallel_size_local": 1,
        "data_parallel_address": HEAD,
        "data_parallel_rpc_port": port,
    }
    add(tmp_path, tiny, "late", 5, **args)
    file = add(tmp_path, tiny, "ranks", JOIN_SECONDS, **args) / "vllm_engine_args.json"
    options = ("vllm", "--args", str(file), "--data-parallel-start-rank", "1")
    here, there = variables | {"VLLM_HOST_IP": HEAD}, variables | {"VLLM_HOST_IP": NODE}
    with running(tmp_path, "cluster_ranks", variables=here) as server:
        error = server.load("late")
        # The one that is here may not have come so far.
        assert re.search(rf"[01] of 2 engines have connected to {HEAD}:{port} within 5 s", error)
        with joined("rank_1", there, *options) as node:
            assert "" == server.load("ranks", JOIN_SECONDS)
            assert_answers_right(server, tiny, "ranks", (0, 1))
            with long_request(server, "ranks", data_parallel_rank=1) as request:
                assert not request.next().error
                since = server.log_size()
                node.kill()
                assert "the engine died" in request.all(LOST_SECONDS)[-1].error
            server.await_log("it is considered lost", since=since)
        with joined("rank_1_again", there, *options):
            server.await_log(": engine restarted (", since=since, seconds=JOIN_SECONDS)
            assert_answers_right(server, tiny, "ranks", (0, 1))
            server.unload("ranks")
            server.await_state("ranks", "UNAVAILABLE", 60)


@again_after_tritons_fault
def test_workers_of_one_engine(tiny: TinyModels, tmp_path: Path, variables: dict[str, str]) -> None:
    """A worker on each machine, joined by torch.distributed; a lost one is a death."""
    (port,) = free_ports(1)
    args = {"tensor_parallel_size": 2, "nnodes": 2, "master_addr": HEAD, "master_port": port}
    add(tmp_path, tiny, "late", 5, **args)
    file = add(tmp_path, tiny, "workers", JOIN_SECONDS, **args) / "vllm_engine_args.json"
    options = ("vllm", "--args", str(file), "--node-rank", "1")
    here, there = variables | {"VLLM_HOST_IP": HEAD}, variables | {"VLLM_HOST_IP": NODE}
    with running(tmp_path, "cluster_workers", variables=here) as server:
        error = server.load("late")
        assert re.search(rf"[01] of 2 nodes have connected to {HEAD}:{port} within 5 s", error)
        with joined("worker_1", there, *options) as node:
            assert "" == server.load("workers", JOIN_SECONDS)
            assert_answers_right(server, tiny, "workers")
            with long_request(server, "workers") as request:
                assert not request.next().error
                since = server.log_size()
                node.kill()
                assert "the engine died" in request.all(LOST_SECONDS)[-1].error
        with joined("worker_1_again", there, *options):
            server.await_log(": engine restarted (", since=since, seconds=JOIN_SECONDS)
            assert_answers_right(server, tiny, "workers")
            server.unload("workers")
            server.await_state("workers", "UNAVAILABLE", 60)
