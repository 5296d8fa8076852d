"""What vLLM says of GPUs and machines, by the vLLM at hand."""

from __future__ import annotations

import json
import os
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM

from triton_vllm.config.settings import ModelSettings
from triton_vllm.errors import SettingsError
from triton_vllm.topology.gpus import Parallelism
from triton_vllm.topology.nodes import JOIN_TIMEOUT, MultiNode, Rendezvous, SingleNode
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api import guard as vllm_guard
from triton_vllm.vllm_api import parallel as vllm_parallel
from triton_vllm.vllm_api.arguments import headless_args, parse_engine_args

WHERE = "/m/vllm_engine_args.json"
CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", Path(__file__).resolve().parents[2] / ".cache"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"


class Gpus:
    """A platform of vLLM's with so many GPUs: what is asked of it, and nothing else."""

    ray_device_key = "GPU"

    def __init__(self, count: int | None) -> None:
        self._count = count

    def is_cuda_alike(self) -> bool:
        return self._count is not None

    def is_unspecified(self) -> bool:
        return False

    def device_count(self) -> int:
        assert self._count is not None
        return self._count


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tmp_path)


def parse(model: str, **given: Any) -> AsyncEngineArgs:
    return parse_engine_args({"model": model, **given}, WHERE, print)


def machines(args: AsyncEngineArgs) -> Any:
    settings = ModelSettings("m", "1", Path("/m"), {"model": "m"})
    return vllm_parallel.cluster_of(args, "", settings)


def test_the_platform_at_hand_says_what_it_needs() -> None:
    """A vLLM for the CPU needs no GPU, and has no name of Ray's; the questions are vLLM's own."""
    assert not current_platform.is_cuda_alike()
    assert vllm_parallel.visible_gpus() is None
    assert not current_platform.ray_device_key


def test_too_few_gpus_are_said_before_anything_is_loaded(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arguments are real, the GPUs are not."""
    monkeypatch.setattr(vllm_parallel, "current_platform", Gpus(1))
    args = parse(model, tensor_parallel_size=2, data_parallel_size="2")
    with pytest.raises(SettingsError, match=r"ask for 4 GPUs .*, and 1 can be seen here"):
        machines(args)
    monkeypatch.setattr(vllm_parallel, "current_platform", Gpus(4))
    assert isinstance(machines(args), SingleNode)


def test_ray_needs_gpus(model: str) -> None:
    """Where vLLM has no name for its devices in Ray, that is said at once."""
    with pytest.raises(SettingsError, match="needs GPUs"):
        machines(parse(model, distributed_executor_backend="ray"))


def test_engine_cores_are_no_actors_of_rays(model: str) -> None:
    """Nobody here would notice the death of one."""
    args = parse(model, data_parallel_size=2, data_parallel_backend="ray")
    with pytest.raises(SettingsError, match=r'"data_parallel_backend": "ray" is not supported'):
        machines(args)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"data_parallel_size": 2, "data_parallel_size_local": 1},
            Rendezvous("127.0.0.1", 29550, 2, "engines"),
        ),
        (
            {
                "data_parallel_size": 4,
                "data_parallel_size_local": 2,
                "data_parallel_address": "10.0.0.1",
                "data_parallel_rpc_port": 13345,
            },
            Rendezvous("10.0.0.1", 13345, 4, "engines"),
        ),
        (
            {"tensor_parallel_size": 2, "nnodes": 2, "master_addr": "10.0.0.1"},
            Rendezvous("10.0.0.1", 29501, 2, "nodes"),
        ),
        ({"data_parallel_size": 2, "data_parallel_rank": 1}, None),
    ],
    ids=["defaults", "data parallel", "tensor parallel", "another rank"],
)
def test_where_other_machines_connect(
    model: str, given: dict[str, Any], expected: Rendezvous | None
) -> None:
    """As vLLM's own configuration has it."""
    args = parse(model, **given)
    assert expected == vllm_parallel.rendezvous(args)
    assert isinstance(machines(args), MultiNode)


def test_parallelism_is_read_as_vllm_reads_it(model: str) -> None:
    """Every argument that counts GPUs is there in this vLLM, with the defaults of one GPU."""
    assert Parallelism(1, is_spread=False, text="") == Parallelism.of(AsyncEngineArgs(model=model))


def test_headless_arguments_are_those_of_the_file(tmp_path: Path) -> None:
    """What vLLM's command line makes of them is what we make of the file, but for the front end."""
    given = {
        "model": str(tmp_path),
        "tensor_parallel_size": 2,
        "data_parallel_size": "4",
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "hf_overrides": {"a": {"b": 1}},
        "disable_log_requests": "true",
    }
    file = tmp_path / "vllm_engine_args.json"
    ours = {"serving": {"max_concurrent_requests": 3}, "tool_call_parser": "hermes"}
    file.write_text(json.dumps(given | ours))
    model, *options = headless_args(file)
    parsed = vllm_api.EngineArgsParser.create().parse_args([f"--model={model}", *options])
    expected = parse_engine_args(given, WHERE, print)
    assert expected == AsyncEngineArgs.from_cli_args(parsed)


def test_a_second_look_sees_what_the_first_saw() -> None:
    """A restart resolves the same arguments again, though vLLM writes into them."""
    args = parse(str(CHECKPOINT), data_parallel_size=2, data_parallel_size_local=1)
    first, second = (vllm_api.create_config(args).parallel_config for _ in range(2))
    assert (2, 1, 0) == (
        second.data_parallel_size,
        second.data_parallel_size_local,
        second.data_parallel_rank,
    )
    assert first.data_parallel_external_lb == second.data_parallel_external_lb


@pytest.fixture
def ray_executor(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Our executor around vLLM's; Ray itself is a fake, its real counterpart in test_cluster.py."""
    # The other one cannot be imported without Ray.
    monkeypatch.setenv("VLLM_USE_RAY_V2_EXECUTOR_BACKEND", "0")
    try:
        from triton_vllm.vllm_api.engine_process.ray import RayExecutor
    except (ImportError, NameError):
        pytest.skip("this vLLM has only the executor that cannot be imported without Ray")
    return RayExecutor


def test_rays_executor_is_vllms(ray_executor: Any) -> None:
    """It can be pickled for the engine core; other executors are vLLM's own."""
    from vllm.v1.executor import Executor

    def config(name: str) -> Any:
        return SimpleNamespace(parallel_config=SimpleNamespace(distributed_executor_backend=name))

    ray, other = config("ray"), config("mp")
    assert ray_executor is vllm_parallel.executor_class(ray)
    assert issubclass(ray_executor, Executor.get_class(ray))
    assert Executor.get_class(other) is vllm_parallel.executor_class(other)
    assert pickle.loads(pickle.dumps(ray_executor)) is ray_executor


class GetTimeoutError(Exception):
    """Ray's."""


def _not_ready(*_: Any, **__: Any) -> None:
    raise GetTimeoutError


NODES = [
    {"Alive": alive, "NodeManagerAddress": address, "Resources": {"GPU": 1.0}}
    for address, alive in (("a", True), ("b", False))
]
FAKE_RAY = SimpleNamespace(
    wait=lambda references, timeout: ([], references),
    get=_not_ready,
    exceptions=SimpleNamespace(GetTimeoutError=GetTimeoutError),
    nodes=lambda: NODES,
    available_resources=lambda: {"GPU": 1.0, "CPU": 4.0},
)


@pytest.mark.parametrize("gpus", [1, 2])
def test_places_that_do_not_come_in_time(
    ray_executor: Any, monkeypatch: pytest.MonkeyPatch, gpus: int
) -> None:
    """VLLM's own wait ends after the operator's time, and the error says what Ray lacks."""
    from vllm.v1.executor import ray_utils

    group = SimpleNamespace(bundle_specs=[{"GPU": 1.0}] * gpus, ready=lambda: "reference")
    start = lambda self: ray_utils._wait_until_pg_ready(group)  # noqa: E731
    monkeypatch.setattr(ray_executor.__bases__[0], "_init_executor", start)
    monkeypatch.setattr(ray_utils, "ray", FAKE_RAY)
    monkeypatch.setitem(sys.modules, "ray", FAKE_RAY)
    monkeypatch.setattr("triton_vllm.vllm_api.engine_process.ray.current_platform", Gpus(2))
    monkeypatch.setattr(ray_utils, "PG_WAIT_TIMEOUT", 1800)
    monkeypatch.setenv(JOIN_TIMEOUT, "0.01")
    executor = object.__new__(ray_executor)
    executor.parallel_config = SimpleNamespace(world_size=gpus)
    with pytest.raises(TimeoutError) as raised:
        executor._init_executor()
    assert (
        f"the Ray cluster has 1 of {gpus} GPUs free, on 1 node (a with 1) within 0.01 s "
        '("serving.cluster_join_timeout_seconds")' == str(raised.value)
    )


def test_a_start_that_fails_by_itself(ray_executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own error is told."""

    def fail(self: Any) -> None:
        raise ValueError("no weights")

    monkeypatch.setattr(ray_executor.__bases__[0], "_init_executor", fail)
    monkeypatch.setenv(JOIN_TIMEOUT, "600.0")
    with pytest.raises(ValueError, match="no weights"):
        object.__new__(ray_executor)._init_executor()


def test_the_engine_client_takes_that_executor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever class vLLM hands to it."""
    taken = []
    monkeypatch.setattr(AsyncLLM, "__init__", lambda self, config, **options: taken.append(options))
    monkeypatch.setattr(vllm_guard, "executor_class", lambda config: "ours")
    parallel = SimpleNamespace(distributed_executor_backend="uni")
    config = SimpleNamespace(parallel_config=parallel, speculative_config=None)
    vllm_guard.GuardedLLM.from_vllm_config(config)
    assert ["ours"] == [options["executor_class"] for options in taken]
