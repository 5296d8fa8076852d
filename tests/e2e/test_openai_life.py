"""The life of the OpenAI-compatible port: beside others, through an engine's death, to its end.

Two front ends serve one port here. The tests run in the order in which they stand here.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.openai_port import (
    client_of,
    complete,
    engine_args,
    eventually,
    is_open,
    metric,
    streams,
)
from tests.e2e.tls import self_signed
from tests.e2e.triton_server import (
    CHECKPOINT,
    TOLD_SECONDS,
    TritonServer,
    add_model,
    ask,
    await_restart,
    check_prerequisites,
    free_ports,
    running,
    sampling,
    use_front_ends,
)
from tests.tiny_llama import HIDDEN, make_tiny_llama

pytestmark = pytest.mark.timeout(400)

FRONT_ENDS = 2
CONTEXT = 16384


@dataclass(frozen=True)
class Served:
    """A server with the model `tiny` on a port; `embed` and `thief` can be loaded, too."""

    triton: TritonServer
    port: int
    embed_port: int
    certificate: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Tiny models of random weights; `embed` has TLS and its key in a file, `thief` no port."""
    check_prerequisites()
    repository = tmp_path_factory.mktemp("model_repository")
    folder = tmp_path_factory.mktemp("openai")
    checkpoint = make_tiny_llama(folder / "tiny", CHECKPOINT, CONTEXT)
    certificate, key = self_signed(folder)
    (folder / "keys").write_text("sk-of-the-file\n")
    port, embed_port = free_ports(2)
    how: dict[str, Any] = {"model": str(checkpoint), "enable_log_requests": False}
    how |= {"max_model_len": CONTEXT}
    own = {"port": port, "served_model_name": "tiny", "drain_timeout_seconds": 300}
    use_front_ends(add_model(repository, "tiny", engine_args=engine_args(own, **how)), FRONT_ENDS)
    secure = {
        "port": embed_port,
        "api_keys_file": str(folder / "keys"),
        "ssl_certfile": str(certificate),
        "ssl_keyfile": str(key),
    }
    pooling = how | {"runner": "pooling", "served_model_name": "embed"}
    add_model(repository, "embed", engine_args=engine_args(secure, **pooling))
    add_model(repository, "thief", engine_args=engine_args({"port": port}, **how))
    # The time to drain is what this leaves of it.
    options = ("--exit-timeout-secs=330",)
    with running(repository, "openai_life", "tiny", options=options) as triton:
        yield Served(triton, port, embed_port, certificate)


def complete_some(port: int, number: int) -> list[int]:
    """Ask so often, each time on a connection of its own; return the numbers of tokens."""

    def one(_: int) -> int:
        with client_of(port) as client:
            return int(complete(client).usage.completion_tokens)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(number)))


def refusal(port: int) -> str:
    """Ask for something; return the error, empty if there is none."""
    with client_of(port) as client:
        try:
            complete(client)
        except openai.APIStatusError as error:
            return str(error.message)
    return ""


def ok(served: Served, front_end: int) -> float:
    """Return how many requests a front end has served well."""
    return metric(
        served.triton,
        "triton_vllm:requests_total",
        outcome="ok",
        front_end=str(front_end),
        model="tiny",
    )


def test_every_front_end_serves_the_port(served: Served) -> None:
    """Connections are spread over them, and all requests are counted."""
    assert [2] * 32 == complete_some(served.port, 32)
    eventually(lambda: sum(ok(served, n) for n in range(FRONT_ENDS)) == 32, "32 requests count")
    assert all(ok(served, n) > 0 for n in range(FRONT_ENDS))


DEVELOPERS = [
    *("sleep", "wake_up", "reset_prefix_cache", "reset_mm_cache", "reset_encoder_cache"),
    *("collective_rpc", "release_kv_cache_memory", "start_profile", "stop_profile"),
    *("v1/load_lora_adapter", "v1/unload_lora_adapter", "pause", "resume", "update_weights"),
    *("scale_elastic_ep", "is_scaling_elastic_ep"),
]


def test_no_route_administers(served: Served) -> None:
    """What vLLM has for developers and operators is not there, unless its variables are set."""
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client:
        statuses = {path: client.post(path, json={}).status_code for path in DEVELOPERS}
    assert dict.fromkeys(DEVELOPERS, 404) == statuses
    assert [2] == complete_some(served.port, 1)


def test_a_port_in_use_fails_the_load(served: Served) -> None:
    """With one line, and before vLLM loads anything."""
    begin = served.triton.log_size()
    error = served.triton.load("thief")
    assert f'"serving.openai": 127.0.0.1:{served.port}: Address already in use' in error
    log = served.triton.log.read_bytes()[begin:].decode(errors="replace")
    assert "thief: configuration of" not in log
    assert [2] == complete_some(served.port, 1)


def test_two_models_have_two_ports(served: Served) -> None:
    """A pooling model beside the first one: TLS, a key from a file, embeddings."""
    assert "" == served.triton.load("embed")
    trust = ssl.create_default_context(cafile=str(served.certificate))
    how: dict[str, Any] = {"base_url": f"https://127.0.0.1:{served.embed_port}/v1"}
    how |= {"http_client": openai.DefaultHttpxClient(verify=trust), "max_retries": 0}
    with openai.OpenAI(api_key="sk-of-the-file", **how) as client:
        one, two = client.embeddings.create(model="embed", input=["a cat", "a dog"]).data
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-of-somebody").models.list()
    assert (HIDDEN, HIDDEN) == (len(one.embedding), len(two.embedding))
    assert one.embedding != two.embedding
    assert pytest.approx(1.0, abs=1e-2) == sum(x * x for x in one.embedding)
    with client_of(served.port) as client:
        assert ["tiny"] == [model.id for model in client.models.list()]


def test_an_unload_frees_one_port(served: Served) -> None:
    """The other model's stays."""
    served.triton.unload("embed")
    eventually(lambda: not is_open(served.embed_port), "the port is freed")
    served.triton.await_state("embed", "UNAVAILABLE", 90)
    assert [2] == complete_some(served.port, 1)


def test_an_engine_that_died_is_503_until_it_is_back(served: Served) -> None:
    """The port stays open, its answers are OpenAI's errors, and then it serves again."""
    with streams(served.port, 4, 16000) as begun:
        (core,) = served.triton.processes("VLLM::EngineCore")
        core.kill()
        killed = time.monotonic()
        for stream in begun:
            with pytest.raises(openai.APIError, match=r"the engine died .* is being restarted"):
                list(stream)
        assert time.monotonic() - killed < TOLD_SECONDS
    eventually(lambda: "503 - the engine died" in refusal(served.port), "requests are refused")
    assert "is being restarted" in refusal(served.port)
    with client_of(served.port) as client, pytest.raises(openai.InternalServerError, match="503"):
        client.get("../health", cast_to=object)
    await_restart(served.triton, FRONT_ENDS)
    assert [2] * 16 == complete_some(served.port, 16)
    asked = {"text_input": "One,", "sampling_parameters": sampling()}
    (response,) = ask(served.triton, asked, model="tiny")
    assert not response.error


def test_an_unload_drains_every_front_end(served: Served) -> None:
    """Whichever Triton ends first: streams on all of them are finished, and the port is freed."""
    with streams(served.port, 8, 1500) as begun:
        served.triton.unload("tiny")
        eventually(lambda: not is_open(served.port), "nobody is let in any more")
        ends = [list(stream)[-1].choices[0].finish_reason for stream in begun]
    assert ["length"] * 8 == ends
    served.triton.await_state("tiny", "UNAVAILABLE", 120)
    assert not is_open(served.port)
