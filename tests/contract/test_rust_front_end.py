"""vLLM's Rust front end by the vLLM at hand: the real binary, its options, and a real engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import vllm

from tests.tiny_llama import make_tiny_llama
from triton_vllm.config.settings import ModelSettings, ServingSettings
from triton_vllm.errors import SettingsError
from triton_vllm.limits.admission import OPENAI, Admission
from triton_vllm.limits.drain import Drain
from triton_vllm.openai_api.rust_server import RustServer
from triton_vllm.openai_api.rust_settings import rust_server
from triton_vllm.topology import child_process
from triton_vllm.topology.front_ends import EngineAddresses
from triton_vllm.topology.load_balancing import NoLoadBalancer
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.arguments import parse_engine_args
from triton_vllm.vllm_api.rust_front_end import PATH, find_binary

CACHE = Path(os.environ.get("TRITON_VLLM_CACHE", Path(__file__).resolve().parents[2] / ".cache"))
CHECKPOINT = CACHE / "models/SmolLM2-135M-Instruct"
WHERE = '/m/a.json: "serving.openai"'


@pytest.fixture(autouse=True)
def binary(monkeypatch: pytest.MonkeyPatch) -> str:
    """That of this vLLM's wheel for CUDA, which scripts/test.sh downloads."""
    beside = Path(vllm.__file__).with_name("vllm-rs")
    cached = CACHE / "vllm-rs" / vllm.__version__.partition("+")[0] / "vllm-rs"
    found = beside if beside.exists() else cached
    if not found.exists():
        pytest.skip(f"left out: neither {beside} nor {cached} is there")
    monkeypatch.setenv(PATH, str(found))
    return str(found)


@pytest.fixture(scope="module")
def port() -> Iterator[socket.socket]:
    """A listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        yield bound


def server(
    port: socket.socket,
    openai: dict[str, Any] | None = None,
    serving: dict[str, Any] | None = None,
    chat: dict[str, Any] | None = None,
    **engine: Any,
) -> RustServer:
    """Return the server of a model with these settings."""
    written: dict[str, Any] = {"model": str(CHECKPOINT), **engine}
    own = {"port": 9000, "server": "rust", **(openai or {})}
    settings = ModelSettings(
        "vllm",
        "1",
        Path("/m"),
        written,
        chat or {},
        ServingSettings.from_json({"openai": own, **(serving or {})}, "/m/a.json"),
    )
    assert settings.serving.openai
    admission = Admission(0, 0, lambda: 0, NoLoadBalancer())
    drain = Drain(admission, {OPENAI: 7.5}, "vllm")
    args = parse_engine_args(written, "/m/a.json", print)
    return rust_server(settings, settings.serving.openai, args, admission, drain, port, WHERE)


def arguments(made: RustServer) -> dict[str, Any]:
    """Return what the binary gets as JSON."""
    return dict(made._front_end._arguments)


def test_the_binary_takes_the_arguments_of_this_vllm(port: socket.socket) -> None:
    """Options of both kinds, with vLLM's names and types; the key is not among them."""
    made = server(
        port,
        {"allowed_origins": ["https://a.example"], "served_model_name": ["a", "b"]},
        chat={"tool_call_parser": "hermes", "enable_auto_tool_choice": True},
        max_model_len=512,
        reasoning_parser="qwen3",
        structured_outputs_config={"backend": "guidance"},
    )
    got = arguments(made)
    expected = {
        "model_tag": str(CHECKPOINT),
        "served_model_name": ["a", "b"],
        "allowed_origins": ["https://a.example"],
        "tool_call_parser": "hermes",
        "reasoning_parser": "qwen3",
        "max_model_len": 512,
        "shutdown_timeout": 7,
    }
    assert expected == {key: got[key] for key in expected}
    assert not {"api_key", "enable_auto_tool_choice", "port", "host"} & got.keys()


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"openai": {"root_path": "/llm"}}, '"root_path": vLLM\'s Rust front end has no such'),
        ({"openai": {"served_model_nam": "a"}}, 'did you mean "served_model_name"'),
        ({"openai": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}}, "no such"),
        ({"openai": {"ssl_certfile": "/nothing"}}, '"ssl_certfile" \\(/nothing\\)'),
        ({"openai": {"api_keys_env": "TWO_KEYS"}}, "takes one API key, got 2"),
        ({"allowed_media_domains": ["a.example"]}, "not implemented .* - allowed_media_domains"),
        ({"serving": {"max_concurrent_requests": 8}}, 'no "serving.max_concurrent_requests"'),
        ({"serving": {"max_queued_tokens": 8}}, 'no "serving.max_queued_tokens"'),
        ({"serving": {"default_timeout_seconds": 8}}, 'no "serving.default_timeout_seconds"'),
        ({"serving": {"default_max_tokens": 8}}, 'no "serving.default_max_tokens"'),
        ({"serving": {"unsupported_schema_keywords": "refuse"}}, "unsupported_schema_keywords"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_has_not_fails_the_load(
    port: socket.socket, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any], told: str
) -> None:
    """With one line, and nothing is ignored."""
    monkeypatch.setenv("TWO_KEYS", "sk-a sk-b")
    with pytest.raises(SettingsError, match=told) as raised:
        server(port, **how)
    assert 1 == len(str(raised.value).splitlines())
    assert "sk-a" not in str(raised.value)


def test_without_the_binary_the_line_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to do."""
    monkeypatch.setenv(PATH, "/nothing/vllm-rs")
    with pytest.raises(SettingsError, match=r"/nothing/vllm-rs is not there: .*wheels for CUDA"):
        find_binary(WHERE)


def test_the_binary_starts_and_takes_its_sockets(port: socket.socket, tmp_path: Path) -> None:
    """It does not complain of its command line, and waits for the engine."""
    front_end: Any = server(port)._front_end
    parallel = SimpleNamespace(
        local_engines_only=False, data_parallel_size=2, data_parallel_size_local=2
    )
    llm: Any = SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=parallel))
    inputs = [f"ipc://{tmp_path}/{n}" for n in range(2)]
    addresses = EngineAddresses([], [], f"ipc://{tmp_path}/s", [], inputs, f"ipc://{tmp_path}/o")

    with front_end.command(llm, addresses, 1, port.fileno()) as (command, descriptors):
        process = subprocess.Popen(
            command, pass_fds=descriptors, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    try:
        output, _ = process.communicate(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
    said = output.decode(errors="replace")
    assert "loaded text backend" in said
    assert "error" not in said.lower()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_both_front_ends_answer_from_one_engine(
    port: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same text, and again after the process was killed."""
    model = make_tiny_llama(tmp_path / "tiny", CHECKPOINT)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    monkeypatch.setenv(child_process.STUB_PID, str(os.getpid()))
    engine: dict[str, Any] = {
        "model": str(model),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 1 << 26,
    }
    made = server(port, {"served_model_name": "tiny"}, **engine)
    args = parse_engine_args(engine, "/m/a.json", print)
    cores = vllm_api.EngineCores(args, 1, rust_clients=1)
    try:
        asyncio.run(ask_both(made, cores.addresses, vllm_api.as_front_end(args, 1, 2), port))
    finally:
        cores.shutdown(timeout=10)


async def ask_both(made: RustServer, addresses: EngineAddresses, args: Any, port: Any) -> None:
    """Ask the engine through both, twice."""
    mine = {
        "input_address": addresses.inputs[0],
        "output_address": addresses.outputs[0],
        "stats_update_address": addresses.stats_update,
    }
    llm = vllm_api.create_engine(
        args, vllm_api.create_config(args), client_addresses=mine, client_count=2, client_index=1
    )
    try:
        await made.serve(llm, addresses)
        truth = await through_python(llm)
        assert truth == await asyncio.to_thread(through_rust, port)
        assert made._process
        made._process.kill()
        assert truth == await asyncio.to_thread(through_rust, port)
        assert truth == await through_python(llm)
        await made.shut_down()
    finally:
        vllm_api.shut_down(llm, 10)


async def through_python(llm: Any) -> str:
    """Return the greedy text of eight tokens."""
    params = vllm_api.SamplingParams(temperature=0, max_tokens=8)
    async for output in llm.generate("The capital of France is", params, uuid.uuid4().hex):
        text = output.outputs[0].text
    return str(text)


def through_rust(port: socket.socket) -> str:
    """Return the same from the port, whose process may have to be started first."""
    asked = {"model": "tiny", "prompt": "The capital of France is", "temperature": 0}
    asked |= {"max_tokens": 8}
    url = f"http://127.0.0.1:{port.getsockname()[1]}/v1/completions"
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(url, json=asked, timeout=120)
            if answer.status_code == 200:
                return str(answer.json()["choices"][0]["text"])
        time.sleep(0.1)
    raise AssertionError("it does not serve")
