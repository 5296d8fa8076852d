"""Engines of several workers, several engines, and several of both, on the CPU's own vLLM.

What it cannot do here is told in docs/scaling.md. CUDA_VISIBLE_DEVICES means nothing to it, so
that it can be looked at.
"""

from __future__ import annotations

import json
import re
import struct
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2_grpc

from tests.e2e.grpc_requests import Response, ask, sampling
from tests.e2e.load import infer_request
from tests.e2e.model_folder import add_model, use_front_ends, use_gpus
from tests.e2e.openai_port import client_of, eventually, is_open, metric
from tests.e2e.processes import free_ports
from tests.e2e.tiny_models import SMALL
from tests.e2e.triton_server import GONE_SECONDS, TritonServer, await_restart

pytestmark = pytest.mark.timeout(500)

TOKENS = "vllm:generation_tokens_total"


@pytest.fixture
def server(parallel: TritonServer) -> TritonServer:
    """The server of the group, to which each test adds its model."""
    return parallel


def serve(
    server: TritonServer,
    checkpoints: Path,
    name: str,
    *,
    instances: int = 1,
    devices: str = "",
    serving: dict[str, Any] | None = None,
    adapters: dict[str, str] | None = None,
    **engine_args: Any,
) -> None:
    """Load the tiny chat model as ``name``, with the given placement and parallelism."""
    args = SMALL | {"model": str(checkpoints / "chat")} | engine_args
    args["serving"] = {"metrics_interval_seconds": 0.3} | (serving or {})
    model = add_model(server.repository, name, engine_args=json.dumps(args))
    use_front_ends(model, instances)
    if devices:
        use_gpus(model, devices)
    if adapters:
        (model / "multi_lora.json").write_text(json.dumps(adapters))
    error = server.load(name)
    assert not error, f"{error}\n{server.log_tail()}"


def end(server: TritonServer, name: str) -> None:
    """Unload a model; nothing of its engines may be left."""
    server.unload(name)
    server.await_state(name, "UNAVAILABLE", 90)
    assert [] == server.await_no_processes(GONE_SECONDS, "VLLM::")


def continued(server: TritonServer, model: str, prompt: str, **parameters: Any) -> list[Response]:
    """Ask for the twelve tokens that follow the prompt."""
    inputs = {
        "text_input": prompt,
        "return_output_ids": True,
        "sampling_parameters": sampling(max_tokens=12, min_tokens=12, **parameters),
    }
    return ask(server, inputs, model=model)


def ids(responses: list[Response]) -> list[int]:
    (response,) = [r for r in responses if r.outputs or r.error]
    assert not response.error, response.error
    return [int(token) for token in response.outputs["output_ids"]]


def greedy_of(checkpoints: Path) -> dict[str, list[int]]:
    """Return some prompts, and the tokens with which transformers continues them."""
    greedy: dict[str, list[int]] = json.loads((checkpoints / "expected.json").read_text())["greedy"]
    return greedy


def assert_answers_right(server: TritonServer, checkpoints: Path, model: str) -> None:
    """Every prompt is continued as transformers does it, from whichever process the answer is."""
    greedy = greedy_of(checkpoints)
    prompts = [*greedy] * 4
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: ids(continued(server, model, prompt)), prompts))
    assert [greedy[prompt] for prompt in prompts] == answers


def variable(process: psutil.Process, name: str) -> str:
    """Return a variable of a process's environment, as it was started with."""
    text = Path(f"/proc/{process.pid}/environ").read_text()
    (value,) = re.findall(rf"(?:^|\0){name}=([^\0]*)", text)
    return str(value)


def await_tokens(server: TritonServer, at_least: float, **labels: str) -> None:
    """Wait until an engine has counted this many tokens."""
    eventually(lambda: metric(server, TOKENS, **labels) >= at_least, f"{at_least} of {labels}")


def await_quiet(server: TritonServer, model: str) -> None:
    """Wait until what was answered has been counted, too."""
    seen = [-1.0]

    def unchanged() -> bool:
        seen.append(metric(server, TOKENS, model=model))
        return len(seen) > 6 and seen[-1] == seen[-6]

    eventually(unchanged, "the metrics stand still")


def port_pair() -> tuple[int, int]:
    """Return a port that is free, and the next, which is, too."""
    while True:
        (port,) = free_ports(1)
        if not is_open(port + 1):
            return port, port + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "sets",
    [
        pytest.param(["0", "1"], id="one worker each"),
        pytest.param(["0,1", "2,3"], id="two workers each"),
    ],
)
def test_instances_on_disjoint_gpus(
    server: TritonServer, checkpoints: Path, sets: list[str]
) -> None:
    """Two engines: on their own GPUs, all workers of each, with an OpenAI port each."""
    port, _ = ports = port_pair()
    workers_each = len(sets[0].split(","))
    name = f"sets_of_{workers_each}"
    serve(
        server,
        checkpoints,
        name,
        instances=2,
        devices=";".join(sets),
        serving={"openai": {"port": port, "served_model_name": "tiny"}},
        tensor_parallel_size=workers_each,
    )
    engines = server.processes("VLLM::EngineCore")
    assert sets == sorted(variable(e, "CUDA_VISIBLE_DEVICES") for e in engines)
    for worker in (workers := server.processes("VLLM::Worker")):
        # Forked by the fork server of its engine core, or started by that.
        (core,) = (engine for engine in engines if worker.parent() in (engine, engine.parent()))
        visible = variable(core, "CUDA_VISIBLE_DEVICES")
        assert visible == variable(worker, "CUDA_VISIBLE_DEVICES")
    # A single worker may be in the engine's own process: on GPUs it is.
    assert len(workers) == 2 * workers_each or (workers_each == 1 and not workers)
    assert_answers_right(server, checkpoints, name)
    await_tokens(server, 1, model=name, gpu_set="0")
    await_tokens(server, 1, model=name, gpu_set="1")
    prompt = next(iter(greedy_of(checkpoints)))
    for gpu_set, number in enumerate(ports):
        before = metric(server, TOKENS, model=name, gpu_set=str(gpu_set))
        client_of(number).completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0, extra_body={"min_tokens": 12}
        )
        await_tokens(server, before + 12, model=name, gpu_set=str(gpu_set))
    end(server, name)


def at_once(
    server: TritonServer, model: str, count: int, max_tokens: int, stack: ExitStack, **how: Any
) -> Any:
    """Send so many requests on one stream, which ends with ``stack``; return its responses."""
    message = infer_request(
        {
            "text_input": b"Hello",
            "sampling_parameters": sampling(max_tokens=max_tokens, ignore_eos=True, **how).encode(),
        }
    )
    message.model_name = model
    channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    responses = stub.ModelStreamInfer(iter([message] * count), timeout=200)
    stack.callback(responses.cancel)
    return responses


def table(server: TritonServer, model: str) -> list[tuple[int, int]]:
    """Return what the front ends of two engines tell each other: requests taken, and under way."""
    pattern = f"triton_vllm-*/{server.process.pid}-*/{model}/*/*/loads"
    (file,) = Path(tempfile.gettempdir()).glob(pattern)
    slots = sorted(struct.iter_unpack("=8q", file.read_bytes()))
    return [(taken, taken + passed) for _, _, taken, passed, *_ in slots]


def requests_of_ranks(server: TritonServer, model: str) -> tuple[int, int]:
    """Return how many requests each of two ranks has, of all front ends."""
    pattern = f"triton_vllm-*/{server.process.pid}-*/{model}/*/*/ranks"
    (file,) = Path(tempfile.gettempdir()).glob(pattern)
    rows = struct.iter_unpack("=8q", file.read_bytes())
    first, second, *_ = (sum(column) for column in zip(*rows, strict=True))
    return first, second


@pytest.mark.slow
def test_engines_get_their_fair_share(server: TritonServer, checkpoints: Path) -> None:
    """Triton's requests level what the OpenAI port has put out of balance, and avoid the dead."""
    port, _ = port_pair()
    openai = {"port": port, "served_model_name": "tiny"}
    options: dict[str, Any] = {"devices": "0;1", "max_num_seqs": 32, "max_model_len": 1024}
    serve(server, checkpoints, "fair", instances=2, serving={"openai": openai}, **options)
    with ExitStack() as stack:
        long: dict[str, Any] = {
            "max_tokens": 1000,
            "stream": True,
            "extra_body": {"ignore_eos": True},
        }
        for _ in range(6):
            stream = client_of(port).completions.create(model="tiny", prompt="Hello", **long)
            stack.callback(stream.close)
        at_once(server, "fair", 12, 1000, stack)
        eventually(lambda: sum(taken for taken, _ in table(server, "fair")) == 12, "all are taken")
        (first, _), (second, _) = now = table(server, "fair")
        # 9 and 9 are under way; without help there would be 12 and 6.
        assert abs(first + 6 - second) <= 4, now
    eventually(lambda: [0, 0] == [n for _, n in table(server, "fair")], "all are cancelled")
    assert_avoids_the_dead(server)
    end(server, "fair")


def assert_avoids_the_dead(server: TritonServer) -> None:
    """While an engine is restarted the other answers; then both do."""
    engines = server.processes("VLLM::EngineCore")
    (first,) = [e for e in engines if variable(e, "CUDA_VISIBLE_DEVICES") == "0"]
    since = server.log_size()
    first.kill()
    server.await_log("restarting the engine", since=since)
    refused = errors_of_twelve(server)
    assert len(refused) <= 2, refused
    await_restart(server, 1)
    (before, _), _ = table(server, "fair")

    def is_asked_again() -> bool:
        assert [] == errors_of_twelve(server)
        return table(server, "fair")[0][0] > before

    eventually(is_asked_again, "the engine that is back gets requests")
    eventually(lambda: [0, 0] == [n for _, n in table(server, "fair")], "none is left over")


def errors_of_twelve(server: TritonServer) -> list[str]:
    """Return with which errors twelve requests at once end."""
    with ExitStack() as stack:
        messages = list(at_once(server, "fair", 12, 12, stack))
    return [message.error_message for message in messages if message.error_message]


def assert_front_ends_count_together(server: TritonServer, model: str) -> None:
    """Six requests that name a rank and six that do not are six for each; cancelled, they are none.

    Both front ends may choose at the same moment.
    """
    level = {(6, 6), (7, 5), (5, 7)}
    with ExitStack() as stack:
        at_once(server, model, 6, 480, stack, data_parallel_rank=1)
        eventually(lambda: (0, 6) == requests_of_ranks(server, model), "six are taken")
        at_once(server, model, 6, 480, stack)
        eventually(lambda: requests_of_ranks(server, model) in level, "the ranks are level")
    eventually(lambda: (0, 0) == requests_of_ranks(server, model), "all are cancelled")


def test_data_parallel_engines(server: TritonServer, checkpoints: Path) -> None:
    """Two ranks behind two front ends: each counts for itself, and can be chosen by its number.

    Each has an adapter that any of the front ends has loaded.
    """
    lora: dict[str, Any] = {
        "adapters": {"loud": str(checkpoints / "adapters/loud")},
        "enable_lora": True,
    }
    serve(server, checkpoints, "ranks", instances=2, data_parallel_size=2, **lora)
    assert 2 == len(server.processes("VLLM::EngineCore"))
    assert_answers_right(server, checkpoints, "ranks")
    (prompt, expected), *_ = greedy_of(checkpoints).items()
    for rank, other in (0, 1), (1, 0):
        await_quiet(server, "ranks")
        before = [metric(server, TOKENS, model="ranks", engine=str(e)) for e in (rank, other)]
        for _ in range(4):  # which front end gets a request is Triton's choice
            assert expected == ids(continued(server, "ranks", prompt, data_parallel_rank=rank))
        await_tokens(server, before[0] + 4 * len(expected), model="ranks", engine=str(rank))
        assert before[1] == metric(server, TOKENS, model="ranks", engine=str(other))
    for rank in (2, -1):
        (refused,) = [
            r for r in continued(server, "ranks", prompt, data_parallel_rank=rank) if r.error
        ]
        assert f"data_parallel_rank {rank} is out of range [0, 2)" in refused.error
    loud = [
        ids(continued(server, "ranks", prompt, data_parallel_rank=rank, lora_name="loud"))
        for rank in (0, 1, 0, 1)
    ]
    assert [loud[0]] * 4 == loud
    assert expected != loud[0]
    assert_front_ends_count_together(server, "ranks")
    end(server, "ranks")
