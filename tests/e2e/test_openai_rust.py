"""The OpenAI-compatible port served by vLLM's Rust front end, the real binary, on a CPU.

The tests run in the order of this file. The first ones are those of the Python server, which agree.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.grpc_requests import generate, start_requests
from tests.e2e.model_folder import CHECKPOINT
from tests.e2e.openai_port import KEY, Served, client_of, eventually, is_open
from tests.e2e.processes import kill_stub
from tests.e2e.rust_front_end import TITLE, add_rust_model, rust_server
from tests.e2e.test_openai import (  # noqa: F401 (collected here, too)
    chat,
    test_an_unknown_model,
    test_chat_with_a_system_prompt,
    test_json_schema,
    test_logprobs,
    test_stop,
    test_the_models_names,
    test_the_prefix_cache_is_shared_with_triton,
    test_tool_call,
)
from tests.e2e.triton_server import GONE_SECONDS, LOAD_SECONDS
from tests.tiny_llama import make_tiny_llama

pytestmark = pytest.mark.timeout(400)
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that these tests end."""
    with rust_server(tmp_path_factory.mktemp("rust"), "openai_rust") as served:
        yield served


def complete(served: Served) -> str:
    """Return the greedy continuation of the prompt through the OpenAI port."""
    how: Any = {"model": "smol", "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    return str(served.client.completions.create(**how).choices[0].text)


def health(served: Served) -> int:
    """Return the status of /health; 0 where a connection ends without an answer."""
    try:
        return int(httpx.get(f"http://127.0.0.1:{served.port}/health", timeout=60).status_code)
    except httpx.TransportError:
        return 0


def test_both_protocols_answer_from_one_engine(served: Served) -> None:
    """At once, and with the same text."""
    with ExitStack() as stack:
        (request,) = start_requests(served.triton, stack, 100)
        assert generate(served.triton, PROMPT) == complete(served)
        assert not request.all()[-1].error
    assert 1 == len(served.triton.processes(TITLE))


def test_a_wrong_key(served: Served) -> None:
    """It is refused, and no command line holds the right one."""
    with (
        client_of(served.port, "sk-guessed") as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert not any(KEY in " ".join(process.cmdline()) for process in served.triton.processes())
    assert KEY not in served.triton.log.read_text(errors="replace")


def test_a_client_that_leaves_frees_the_engine(served: Served) -> None:
    """Its request, which would have taken long, ends."""

    def running() -> bool:
        text = httpx.get(f"http://127.0.0.1:{served.port}/metrics", timeout=60).text
        lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running")]
        return any(float(line.rpartition(" ")[2]) > 0 for line in lines)

    with chat(served, max_tokens=450, extra_body={"ignore_eos": True}, stream=True) as stream:
        next(stream)
        eventually(running, "it runs")
    began = time.monotonic()
    eventually(lambda: not running(), "it ends")
    assert time.monotonic() - began < 10


def test_a_killed_process_is_replaced(served: Served) -> None:
    """Without harm to the engine: a request of Triton's runs on, and gets all its tokens."""
    truth = complete(served)
    (process,) = served.triton.processes(TITLE)
    with ExitStack() as stack:
        (request,) = start_requests(served.triton, stack, 200)
        since = served.triton.log_size()
        process.send_signal(signal.SIGKILL)
        served.triton.await_log("front end exited with -9", since=since)
        served.triton.await_log("front end serves again", since=since)
        assert truth == complete(served)
        assert not request.all()[-1].error
    assert truth == generate(served.triton, PROMPT)


def test_the_engine_aborts_the_requests_of_a_killed_process(served: Served) -> None:
    """It is idle long before it would have generated them to their end."""
    engine = served.triton.processes("VLLM::")  # with its worker
    (process,) = served.triton.processes(TITLE)
    since = served.triton.log_size()
    with chat(served, max_tokens=450, extra_body={"ignore_eos": True}, stream=True) as stream:
        next(stream)
        process.send_signal(signal.SIGKILL)
        with pytest.raises((openai.APIError, httpx.TransportError)):
            list(stream)
    served.triton.await_log("front end serves again", since=since)
    before = sum(part.cpu_times().user for part in engine)
    time.sleep(2)
    assert sum(part.cpu_times().user for part in engine) - before < 0.5
    assert b"may go on with them" not in served.triton.log.read_bytes()[since:]


@pytest.mark.parametrize(
    "how", [{"prompt": PROMPT}, {"messages": [{"role": "user", "content": "Hi"}]}]
)
def test_one_answer_for_each_request(served: Served, how: dict[str, Any]) -> None:
    """The process refuses any greater ``n``, so no limit of ours is missing."""
    path = "completions" if "prompt" in how else "chat/completions"
    for n, status in ((1, 200), (2, 400), (1_000_000, 400)):
        answer = httpx.post(
            f"http://127.0.0.1:{served.port}/v1/{path}",
            headers={"Authorization": f"Bearer {KEY}"},
            json={"model": "smol", "max_tokens": 2, "n": n, **how},
            timeout=60,
        )
        assert status == answer.status_code, answer.text
        if status == 200:
            assert 1 == len(answer.json()["choices"])
        else:
            assert "n" in answer.json()["error"]["message"]


def test_a_dead_engine_brings_both_back(served: Served) -> None:
    """The port says 503 while the engine restarts, and serves the new one."""
    truth = complete(served)
    (engine,) = served.triton.processes("VLLM::EngineCore")
    since = served.triton.log_size()
    engine.send_signal(signal.SIGKILL)
    served.triton.await_log("the engine died", since=since)
    eventually(lambda: health(served) == 503, "the port says that there is no engine")
    with pytest.raises(openai.InternalServerError, match="the engine died"):
        complete(served)
    served.triton.await_log("engine restarted", since=since, seconds=LOAD_SECONDS)
    assert truth == complete(served) == generate(served.triton, PROMPT)
    assert 1 == len(served.triton.processes(TITLE))


@pytest.mark.slow
def test_an_option_that_it_has_not_fails_the_load(served: Served) -> None:
    """With one line, before vLLM loads anything."""
    add_rust_model(served.triton.repository, "wrong", openai={"root_path": "/llm"})
    add_rust_model(served.triton.repository, "lost", serving={"default_timeout_seconds": 5})
    assert '"root_path": vLLM\'s Rust front end has no such option' in served.triton.load("wrong")
    assert 'has no "serving.default_timeout_seconds"' in served.triton.load("lost")
    assert 200 == health(served)


def test_an_unload_drains_and_frees_the_port(served: Served) -> None:
    """A request that runs is answered; a reload serves again."""
    truth = complete(served)
    how: Any = {
        "model": "smol",
        "prompt": PROMPT,
        "temperature": 0,
        "max_tokens": 40,
        "stream": True,
    }
    with served.client.completions.create(**how, extra_body={"ignore_eos": True}) as stream:
        next(stream)
        served.triton.unload("vllm")
        *_, last = stream
    assert "length" == last.choices[0].finish_reason
    served.triton.await_state("vllm", "UNAVAILABLE")
    assert not is_open(served.port)
    assert [] == served.triton.await_no_processes(GONE_SECONDS, TITLE)
    assert "" == served.triton.load("vllm")
    assert truth == complete(served)


def test_a_killed_front_end_takes_it_along(served: Served) -> None:
    """Nothing of a model whose stub was killed is left."""
    (stub,) = served.triton.processes("triton_python_backend_stub")
    kill_stub(stub)
    assert [] == served.triton.await_no_processes(GONE_SECONDS, TITLE)
    assert [] == served.triton.await_no_processes(GONE_SECONDS, "VLLM::")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "how",
    [
        pytest.param({"front_ends": 2}, id="two front ends"),
        pytest.param({"data_parallel_size": 2}, id="data parallel"),
        pytest.param({"tensor_parallel_size": 2}, id="tensor parallel"),
    ],
)
def test_several_processes(
    tmp_path: Path, how: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both protocols answer alike, whatever serves them; SIGTERM ends all in order."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # or two ranks would want two cores
    tiny = make_tiny_llama(tmp_path / "tiny", CHECKPOINT)
    how = {"model": str(tiny), "dtype": "float32", "openai": {"served_model_name": "smol"}, **how}
    with rust_server(tmp_path / "repository", "openai_rust_several", **how) as served:
        truth = generate(served.triton, PROMPT)
        assert [truth] * 3 == [complete(served) for _ in range(3)]
        began = time.monotonic()
        assert 0 == served.triton.terminate()
        assert time.monotonic() - began < 30
        assert [] == served.triton.await_no_processes(GONE_SECONDS)
