"""The peers of a comparison: their names, their servers' files and processes, their tables."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from peers import plots
from peers.peer import Peer, PeerError
from peers.processes import Tree
from peers.report import resolved_table, table
from peers.server import Server, ServerError
from peers.setup import Command, Setup, check, command

ROOT = Path(__file__).resolve().parents[2]
PORTS = (1, 2, 3, 4)


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """A setup without any server installed, but with our model."""
    return Setup(
        folder=tmp_path,
        python=Path(sys.executable),
        triton=tmp_path / "triton",
        template=ROOT / "model_repository/vllm",
        execution_env=tmp_path / "env",
        official_backend=None,
        engine_args={"model": "m", "enforce_eager": True, "enable_x": False, "n": 5, "c": {"a": 1}},
        vllm_env={"A": "1"},
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vllm", {"kind": "vllm"}),
        ("vllm-rust", {"kind": "vllm", "rust": True}),
        ("vllm-api4", {"kind": "vllm", "api_servers": 4}),
        ("ours-4", {"kind": "ours", "front_ends": 4}),
        ("ours-4-openai", {"kind": "ours", "front_ends": 4, "openai": True}),
        ("ours-1-openai-rust", {"kind": "ours", "openai": True, "rust": True}),
        ("ours-4x2-http-nometrics",
         {"kind": "ours", "front_ends": 4, "sender_threads": 2, "http": True, "metrics": False}),
        ("send-8x1", {"kind": "send", "front_ends": 8, "sender_threads": 1}),
        ("official", {"kind": "official"}),
        ("offline", {"kind": "offline"}),
    ],
)  # fmt: skip
def test_a_name_says_what_a_peer_is(name: str, expected: dict[str, Any]) -> None:
    """Each name is a kind of server with its variations."""
    assert Peer(name=name, **expected) == Peer.parse(name)


@pytest.mark.parametrize(
    "name",
    [
        "ours-rust",
        "ours-1-openai-rust-http",
        "vllm-4",
        "vllm-http",
        "offline-2",
        "official-2",
        "send-1-openai",
        "",
        "ours-",
    ],
)
def test_a_wrong_name_is_refused(name: str) -> None:
    """A name that means nothing is refused with all that mean something."""
    with pytest.raises(PeerError, match="vllm-apiN"):
        Peer.parse(name)


def test_http_and_grpc_are_one_server() -> None:
    """A peer spoken to by HTTP needs no server of its own."""
    by_grpc, by_http = Peer.parse("ours-2"), Peer.parse("ours-2-http")
    assert by_grpc.server == by_http.server
    assert ("triton-grpc", "triton-http") == (by_grpc.protocol, by_http.protocol)


def test_what_is_not_installed_is_said(setup: Setup) -> None:
    """Without vLLM, Triton or the official backend, its peers say so."""
    for name, missing in (("vllm", "no vllm"), ("ours-1", "tritonserver")):
        with pytest.raises(PeerError, match=missing):
            check(Peer.parse(name), setup)
    (setup.triton / "bin").mkdir(parents=True)
    (setup.triton / "bin/tritonserver").touch()
    check(Peer.parse("ours-1"), setup)
    with pytest.raises(PeerError, match="--official-backend"):
        check(Peer.parse("official"), setup)


def test_vllm_gets_the_engine_arguments_as_flags(setup: Setup) -> None:
    """Booleans, numbers and objects become vllm serve's flags."""
    started = command(Peer.parse("vllm-api4"), setup, PORTS)
    line = " ".join(started.arguments)
    assert "serve m --served-model-name bench" in line
    assert '--enforce-eager --no-enable-x --n 5 --c {"a": 1} --api-server-count 4' in line
    assert "1" == started.environment["A"]
    on_one = command(Peer.parse("vllm-gpu1"), setup, PORTS).environment
    assert {"CUDA_VISIBLE_DEVICES"} == set(on_one) - set(started.environment)


def test_ours_gets_the_engine_arguments_in_its_file(setup: Setup) -> None:
    """The model is our template, with front ends, threads, environment and engine arguments."""
    started = command(Peer.parse("ours-4x2"), setup, PORTS)
    model = setup.folder / "ours-4x2/models/bench"
    written = json.loads((model / "vllm_engine_args.json").read_text())
    assert {**setup.engine_args, "serving": {"sender_threads": 2}} == written
    config = (model / "config.pbtxt").read_text()
    assert "count: 4 kind: KIND_MODEL" in config
    assert 1 == config.count("EXECUTION_ENV_PATH")
    assert str(setup.folder / "env") in config
    assert (model / "1/model.py").exists()
    assert ("127.0.0.1:1", "127.0.0.1:2") == (started.address, started.grpc_address)


def test_ours_may_open_its_openai_port(setup: Setup) -> None:
    """On a port of its own, under the name that all peers have; and is asked there."""
    peer = Peer.parse("ours-1-openai")
    started = command(peer, setup, PORTS)
    written = setup.folder / "ours-1-openai/models/bench/vllm_engine_args.json"
    opened = {"port": 4, "served_model_name": ["bench"]}
    assert {"openai": opened} == json.loads(written.read_text())["serving"]
    assert ("127.0.0.1:4", "openai") == (started.address_of(peer), peer.protocol)


def test_send_only_takes_our_package_along(setup: Setup) -> None:
    """The send-only model is served with the product's own package."""
    command(Peer.parse("send-2x3"), setup, PORTS)
    model = setup.folder / "send-2x3/models/bench"
    assert (model / "1/triton_vllm/protocol/stream.py").exists()
    assert "SamplingParser" in (model / "1/model.py").read_text()
    config = (model / "config.pbtxt").read_text()
    assert 'key: "SENDER_THREADS" value { string_value: "3" }' in config


def test_a_tree_knows_and_ends_all_its_processes() -> None:
    """A grandchild with a process group of its own is found, has CPU time, and is ended."""
    code = "import os\nif not os.fork():\n os.setsid()\nwhile True: pass"
    leader = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        tree = Tree(leader.pid)
        deadline = time.monotonic() + 20
        while len(tree.processes()) < 2 or len(used(tree)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        leader.kill()
        leader.wait()
        (orphan,) = tree.processes()
        tree.kill()
        while tree.processes():
            assert time.monotonic() < deadline, f"{orphan} lives on"
            time.sleep(0.05)
    finally:
        leader.kill()
        leader.wait()


def used(tree: Tree) -> list[float]:
    return [seconds for seconds in tree.cpu_seconds().values() if seconds > 0]


def test_a_server_that_ends_shows_its_log(tmp_path: Path) -> None:
    """A server that exits while it starts is an error with the end of its log."""
    failing = Command((sys.executable, "-c", "raise SystemExit('no GPU')"), {}, "127.0.0.1:9", "/")
    server = Server(Peer.parse("vllm"), failing, tmp_path)
    with pytest.raises(ServerError, match=r"ended with 1(.|\n)*no GPU"):
        server.await_ready(30)
    server.stop()


def test_the_offline_peer_is_asked_over_pipes(tmp_path: Path) -> None:
    """Requests go in as a line, figures come back as one; a silent peer is ended in time."""
    code = (
        "import json, sys, time\nprint('{}', flush=True)\n"
        "n = len(json.loads(input())['prompts'])\n"
        "print(json.dumps({'tokens': n}), flush=True)\ntime.sleep(100)"
    )
    answering = Command((sys.executable, "-c", code), {}, "", "")
    server = Server(Peer.parse("offline"), answering, tmp_path)
    try:
        server.await_ready(30)
        assert {"tokens": 2} == server.generate({"prompts": ["a", "b"]}, 30)
        with pytest.raises(ServerError, match="too slow"):
            server.generate({}, 0.2)
    finally:
        server.stop()


def row(peer: str, rate: float, **more: Any) -> dict[str, Any]:
    """One measured row."""
    ttft = {"p50": 1.0, "p99": 2.0}
    return {
        "peer": peer, "stream": True, "streams": 8, "failed": 0, "tokens_per_second": rate,
        "ttft_ms": ttft, "gap_ms": ttft, "messages_per_request": 16, **more,
    }  # fmt: skip


ROWS = [
    *(row("vllm", rate) for rate in (90, 100, 120)),
    *(row("vllm-rust", rate) for rate in (190, 200, 210)),
    *(row("ours-4", rate) for rate in (230, 250, 240)),
    row("offline", 300, stream=False, ttft_ms={}, gap_ms={}),
    row("ours-4", 0, streams=64, failed=3, errors={"gone": 1}),
]


def test_the_table_has_medians_spread_and_ratios() -> None:
    """Rates are medians with the least and the most, as a share of the best vllm serve."""
    lines = table(ROWS).splitlines()
    assert any(line.startswith("| ours-4 | 240 | 230 to 250 | 1.20 | 16 |") for line in lines)
    assert any(line.startswith("| vllm | 100 | 90 to 120 | 0.50 |") for line in lines)
    assert "### 8 streams, streamed" in lines
    assert "### 8 streams, not streamed" in lines


def test_the_table_has_the_engines_steps() -> None:
    """A server that does not tell them has none."""
    told = row("ours-4", 100, output_tokens=1000, engine_steps=20, prompt_steps=5)
    header, _, first, second = table([told, row("vllm", 90)]).splitlines()[2:6]
    names = [name.strip() for name in header.split("|")]
    places = names.index("tokens a step"), names.index("with prompts %")
    cells = [[line.split("|")[place].strip() for place in places] for line in (first, second)]
    assert [["50", "25"], ["", ""]] == cells


def test_the_table_has_what_was_lost() -> None:
    """In all repeats; nothing where the servers were not asked to count."""
    rows = [row("ours-4", 100, lost_tokens=lost) for lost in (0, 3)]
    header, _, first, second = table([*rows, row("vllm", 90)]).splitlines()[2:6]
    place = [name.strip() for name in header.split("|")].index("tokens lost")
    assert ["3", ""] == [line.split("|")[place].strip() for line in (first, second)]


def test_plots_are_drawn(tmp_path: Path) -> None:
    """A plot of throughput for each kind of answer, and one of latency for streams."""
    drawn = [path.name for path in plots.draw(ROWS, tmp_path)]
    assert ["throughput_streamed.png", "latency_streamed.png", "throughput_whole.png"] == drawn
    for name in drawn:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_what_engines_made_of_the_arguments_is_compared() -> None:
    """A value that differs between the engines is marked; a send path has none."""
    resolved = {"vllm": {"a": "1", "b": "2"}, "ours-4": {"a": "1", "b": "3"}, "send-1": {}}
    lines = resolved_table(resolved).splitlines()
    assert "|  | vllm | ours-4 |" == lines[0]
    assert lines[2:] == ["| a | 1 | 1 |", "| **b (differs)** | 2 | 3 |"]
