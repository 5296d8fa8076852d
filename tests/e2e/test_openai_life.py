"""The life of the OpenAI-compatible port: beside others, through an engine's death, to its end.

Two front ends serve one port here. The tests run in the order in which they stand here.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.openai_port import (
    client_of,
    engine_args,
    eventually,
    is_open,
    metric,
    use_front_ends,
)
from tests.e2e.tls import self_signed
from tests.e2e.triton_server import (
    CHECKPOINT,
    TritonServer,
    add_model,
    ask,
    await_restart,
    check_prerequisites,
    free_ports,
    running,
)
from tests.tiny_models import make_tiny_llama

pytestmark = pytest.mark.timeout(400)

FRONT_ENDS = 2


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
    checkpoint = make_tiny_llama(folder / "tiny", CHECKPOINT)
    certificate, key = self_signed(folder)
    (folder / "keys").write_text("sk-of-the-file\n")
    port, embed_port = free_ports(2)
    how: dict[str, Any] = {"model": str(checkpoint), "enable_log_requests": False}
    own = {"port": port, "served_model_name": "tiny", "drain_seconds": 60}
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
    with running(repository, "openai_life", "tiny") as triton:
        yield Served(triton, port, embed_port, certificate)


def complete(port: int, tokens: int = 2, **how: Any) -> Any:
    """Ask for so many tokens on a connection of its own."""
    with client_of(port) as client:
        return client.completions.create(
            model="tiny",
            prompt="One, two,",
            max_tokens=tokens,
            extra_body={"ignore_eos": True},
            **how,
        )


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
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(served.port), range(32)))
    assert [2] * 32 == [answer.usage.completion_tokens for answer in answers]
    eventually(lambda: sum(ok(served, n) for n in range(FRONT_ENDS)) == 32, "32 requests count")
    assert all(ok(served, n) > 0 for n in range(FRONT_ENDS))


def test_a_port_in_use_fails_the_load(served: Served) -> None:
    """With one line, and before vLLM loads anything."""
    begin = served.triton.log_size()
    error = served.triton.load("thief")
    assert f'"serving.openai": 127.0.0.1:{served.port}: Address already in use' in error
    log = served.triton.log.read_bytes()[begin:].decode(errors="replace")
    assert "thief: configuration of" not in log
    assert 2 == complete(served.port).usage.completion_tokens


def test_two_models_have_two_ports(served: Served) -> None:
    """A pooling model beside the first one: TLS, a key from a file, embeddings."""
    assert "" == served.triton.load("embed")
    trust = ssl.create_default_context(cafile=str(served.certificate))
    how: dict[str, Any] = {"base_url": f"https://127.0.0.1:{served.embed_port}/v1"}
    how |= {"http_client": openai.DefaultHttpxClient(verify=trust), "max_retries": 0}
    client = openai.OpenAI(api_key="sk-of-the-file", **how)
    one, two = client.embeddings.create(model="embed", input=["a cat", "a dog"]).data
    assert (128, 128) == (len(one.embedding), len(two.embedding))
    assert one.embedding != two.embedding
    assert pytest.approx(1.0, abs=1e-2) == sum(x * x for x in one.embedding)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(api_key="sk-of-somebody", **how).models.list()
    assert ["tiny"] == [model.id for model in client_of(served.port).models.list()]


def test_an_unload_frees_one_port(served: Served) -> None:
    """The other model's stays."""
    served.triton.unload("embed")
    eventually(lambda: not is_open(served.embed_port), "the port is freed")
    served.triton.await_state("embed", "UNAVAILABLE", 90)
    assert 2 == complete(served.port).usage.completion_tokens


def test_an_engine_that_died_is_503_until_it_is_back(served: Served) -> None:
    """The port stays open, its answers are OpenAI's errors, and then it serves again."""
    with ExitStack() as stack:
        streams = [complete(served.port, 480, stream=True) for _ in range(4)]
        for stream in streams:
            next(stack.enter_context(stream))
        (core,) = served.triton.processes("VLLM::EngineCore")
        core.kill()
        for stream in streams:
            with pytest.raises(openai.APIError):
                list(stream)
    with pytest.raises(openai.InternalServerError) as raised:
        complete(served.port)
    assert 503 == raised.value.status_code
    assert "is being restarted" in raised.value.message
    health = client_of(served.port).with_options(timeout=30)
    with pytest.raises(openai.InternalServerError, match="503"):
        health.get("../health", cast_to=object)
    await_restart(served.triton, FRONT_ENDS)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: complete(served.port), range(16)))
    assert [2] * 16 == [answer.usage.completion_tokens for answer in answers]
    (response,) = ask(served.triton, {"text_input": "One,"}, model="tiny")
    assert not response.error


def test_an_unload_drains_every_front_end(served: Served) -> None:
    """Whichever Triton ends first: streams on all of them are finished, and the port is freed."""
    tokens = 480
    with ExitStack() as stack:
        streams = [complete(served.port, tokens, stream=True) for _ in range(8)]
        received = [[next(stack.enter_context(stream))] for stream in streams]
        served.triton.unload("tiny")
        eventually(lambda: not is_open(served.port), "nobody is let in any more")
        since = time.monotonic()
        for stream, chunks in zip(streams, received, strict=True):
            chunks += list(stream)
        assert {"length"} == {chunks[-1].choices[0].finish_reason for chunks in received}
    served.triton.await_state("tiny", "UNAVAILABLE", 90)
    assert time.monotonic() - since < 90
    assert not is_open(served.port)
