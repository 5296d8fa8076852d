"""The bench on several GPUs: peers, loads, ratios, and what bench/gpus.sh compares.

A stand-in for python3 tells how that calls it.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from loadgen.workload import tokenizer_of
from peers.comparison import Plan
from peers.peer import Peer, PeerError
from peers.report import scaling_table, table
from peers.shape import reshape
from tests.unit.test_peers import row

GPUS = Path(__file__).resolve().parents[2] / "bench/gpus.sh"


@pytest.fixture
def called(tmp_path: Path) -> Path:
    """The calls of python3, a line each; it takes as long as the variable NAP says."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    stand_in(bin_folder / "python3", f'echo "$*" >>{tmp_path}/called\nexec sleep "${{NAP:-0}}"')
    return tmp_path / "called"


def stand_in(path: Path, script: str) -> None:
    """Write a program."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def gpus(called: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script on two GPUs, unless a variable says another number."""
    path = f"{called.parent}/bin:{os.environ['PATH']}"
    environment = {**os.environ, "GPUS": "2", **variables, "PATH": path}
    command = [str(GPUS), *options]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def planned(called: Path, *options: str, **variables: str) -> dict[str, list[str]]:
    """Return the arguments of compare.py by comparison; none is run."""
    outcome = gpus(called, "out", "--model", "m", *options, DRY_RUN="1", **variables)
    assert 0 == outcome.returncode, outcome.stderr
    assert not called.exists()
    lines = [shlex.split(line) for line in outcome.stdout.splitlines()]
    return {Path(line[line.index("--out") + 1]).name: line for line in lines}


def peers_of(line: list[str]) -> list[Peer]:
    """Return the peers of a command."""
    return [Peer.parse(name) for name in line[line.index("--peers") + 1].split(",")]


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize("suffix", ["", "-http"])
def test_each_comparison_is_with_one_gpu_and_with_vllms_rust_front_end(
    called: Path, count: int, suffix: str
) -> None:
    """On so many GPUs, for any number of them, with at most three servers on a GPU."""
    lines = planned(called, GPUS=str(count), SUFFIX=suffix)
    even = count >= 4 and count % 2 == 0
    assert ["tp", "dp", "sets", *(["tpsets"] if even else [])] == list(lines)
    for line in lines.values():
        assert Path(line[line.index("--config") + 1]).exists()
        assert "m" == line[line.index("--model") + 1]
        peers = peers_of(line)
        assert {("vllm", 1), ("ours", 1), ("vllm", count), ("ours", count)} == {
            (peer.kind, peer.gpus) for peer in peers
        }
        assert all(peer.rust for peer in peers if peer.kind == "vllm")
        assert all(peer.http == bool(suffix) for peer in peers if peer.kind == "ours")
        on_one = Counter(peer.gpu or 0 for peer in peers if peer.gpus == 1)
        assert max(on_one.values()) + sum(peer.gpus == count for peer in peers) <= 3
    assert {"dp", "sets"} == {name for name, line in lines.items() if "--streams-per-gpu" in line}


def test_eight_gpus(called: Path) -> None:
    """Four front ends for each GPU; two engines of four GPUs; client processes for the load."""
    lines = planned(called, GPUS="8")
    ours = {name: peers_of(line)[-1] for name, line in lines.items()}
    front_ends = {name: peer.front_ends for name, peer in ours.items()}
    assert {"tp": 4, "dp": 32, "sets": 32, "tpsets": 8} == front_ends
    assert {"data_parallel_size": 8} == ours["dp"].parallelism
    assert "0;1;2;3;4;5;6;7" == ours["sets"].gpu_device_ids
    assert "0,1,2,3;4,5,6,7" == ours["tpsets"].gpu_device_ids
    assert {"tensor_parallel_size": 4} == ours["tpsets"].parallelism
    vllms = peers_of(lines["tpsets"])[-2]
    assert {"tensor_parallel_size": 4, "data_parallel_size": 2} == vllms.parallelism
    assert "16" == lines["dp"][lines["dp"].index("--processes") + 1]


@pytest.mark.parametrize("count", [2, 8])
def test_a_mixture_of_experts_is_compared_where_asked_for(called: Path, count: int) -> None:
    """VLLM and ours have their experts divided alike."""
    (line,) = planned(called, GPUS=str(count), COMPARISONS="moe").values()
    assert Path(line[line.index("--config") + 1]).exists()
    peers = peers_of(line)
    assert {1, count} == {peer.gpus for peer in peers}
    ours, vllms = ([p.parallelism for p in peers if p.kind == kind] for kind in ("ours", "vllm"))
    assert ours == vllms
    assert {"data_parallel_size": count, "enable_expert_parallel": True} in ours


def test_70b_weights_and_caches_of_both_servers_fit(called: Path) -> None:
    """By the arithmetic of the script's header, with 8 GB a server for all else."""
    (line,) = planned(called, GPUS="8", COMPARISONS="70b").values()
    peers = peers_of(line)
    assert [("vllm", 8), ("ours", 8)] == [(peer.kind, peer.tensor_parallel) for peer in peers]
    config = json.loads(Path(line[line.index("--config") + 1]).read_text())
    shape, engine_args = config["shape"], config["engine_args"]
    layers, width = shape["num_hidden_layers"], shape["hidden_size"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * width * (width + keys) + 3 * width * shape["intermediate_size"]
    weights = 2 * (layers * layer + 2 * 128256 * width)
    assert 141e9 == pytest.approx(weights, rel=0.01)
    tokens = 256 * (config["input_tokens"] + config["output_tokens"])
    token = layers * keys * 2 * 2
    for gpus in (4, 8):
        assert tokens * token / gpus < engine_args["kv_cache_memory_bytes"]
        server = weights / gpus + engine_args["kv_cache_memory_bytes"] + 8e9
        assert len(peers) * server < 139 * 2**30


def test_gpus_are_counted(called: Path) -> None:
    """Those that are seen here, else those of nvidia-smi, else those of torch in --python."""
    bin_folder = called.parent / "bin"
    unset = {"GPUS": "", "CUDA_VISIBLE_DEVICES": ""}
    stand_in(bin_folder / "python", "echo 3")
    assert "tpsets" not in planned(called, "--python", str(bin_folder / "python"), **unset)
    stand_in(
        bin_folder / "nvidia-smi", "printf 'GPU 0: a\\n  MIG b\\nGPU 1: a\\nGPU 2: a\\nGPU 3: a\\n'"
    )
    assert "vllm-rust-tp4" in " ".join(planned(called, **unset)["tp"])
    seen = planned(called, **{**unset, "CUDA_VISIBLE_DEVICES": "4,5"})
    assert "vllm-rust-tp2" in " ".join(seen["tp"])


@pytest.mark.parametrize("count", ["0", "1", "two"])
def test_two_gpus_are_needed(called: Path, count: str) -> None:
    """Fewer are refused with one line."""
    outcome = gpus(called, "out", GPUS=count)
    assert (2, f"needs two GPUs or more, has: {count}; GPUS says how many to use\n") == (
        outcome.returncode,
        outcome.stderr,
    )


def test_it_ends_by_itself(called: Path) -> None:
    """What no time is left for is left out."""
    outcome = gpus(called, "out", LIMIT_SECONDS="61", NAP="4")
    assert 1 == outcome.returncode
    assert "sets: left out, the time is over" in outcome.stderr
    assert 1 == len(called.read_text().splitlines())


def test_a_wrong_comparison_is_refused(called: Path) -> None:
    """A name that is none ends it, and so does one that needs more GPUs."""
    assert 2 == gpus(called, "out", COMPARISONS="pp").returncode
    outcome = gpus(called, "out", COMPARISONS="tpsets", GPUS="3")
    assert (2, "tpsets needs an even number of GPUs, four or more: 3\n") == (
        outcome.returncode,
        outcome.stderr,
    )


def test_a_model_gets_another_shape(tmp_path: Path) -> None:
    """Its copy has the tokenizer and the new sizes, and none of the weights."""
    model = tmp_path / "model"
    (model / "original").mkdir(parents=True)
    (model / "config.json").write_text('{"hidden_size": 1, "vocab_size": 7}')
    for name in ("tokenizer.json", "model.safetensors", "original/params.json"):
        (model / name).write_text("{}")
    copy = reshape(model, {"hidden_size": 2}, tmp_path / "copy")
    assert {"config.json", "tokenizer.json"} == {path.name for path in copy.iterdir()}
    assert {"hidden_size": 2, "vocab_size": 7} == json.loads((copy / "config.json").read_text())
    with pytest.raises(FileNotFoundError):
        reshape(tmp_path / "none", {}, tmp_path / "copy")


def test_peers_on_several_gpus() -> None:
    """The name says how many GPUs, and how they are used."""
    peer = Peer.parse("ours-4-tp2-sets2-http")
    assert ({"tensor_parallel_size": 2}, 4) == (peer.parallelism, peer.gpus)
    assert "0,1;2,3" == peer.gpu_device_ids
    assert {"data_parallel_size": 2} == Peer.parse("vllm-dp2").parallelism
    assert "" == Peer.parse("ours-2-dp2").gpu_device_ids
    peer = Peer.parse("ours-2-pp2-dp2-ep-sets2")
    sizes = {"pipeline_parallel_size": 2, "data_parallel_size": 2, "enable_expert_parallel": True}
    assert (sizes, 8, "0,1,2,3;4,5,6,7") == (peer.parallelism, peer.gpus, peer.gpu_device_ids)
    peer = Peer.parse("ours-8-tp4-sets2-http")
    assert (8, 8, "0,1,2,3;4,5,6,7") == (peer.front_ends, peer.gpus, peer.gpu_device_ids)
    for name in ("vllm-sets2", "ours-8-sets2-openai"):
        with pytest.raises(PeerError):
            Peer.parse(name)


def test_scaling_is_told_against_one_gpu_of_the_same_kind() -> None:
    """Ours on two GPUs is compared with our best on one, under the same load."""
    rates = {"vllm": 90, "ours-1": 80, "ours-2": 100, "ours-2-dp2": 190, "vllm-tp2": 135}
    rows = [
        {"peer": peer, "stream": True, "streams": 8, "tokens_per_second": rate}
        for peer, rate in rates.items()
    ]
    assert [
        "| ours-2-dp2 | 2 | 8 | 8 | 1.90 |",
        "| vllm-tp2 | 2 | 8 | 8 | 1.50 |",
    ] == scaling_table(rows).splitlines()[2:]
    assert "" == scaling_table(rows[:3])


def test_a_peer_on_one_gpu_sees_that_alone() -> None:
    """GPUs are counted as they are seen here; one on several GPUs has no such name."""
    for name in ("vllm-gpu1", "ours-2-gpu1-http", "official-gpu1"):
        assert {"CUDA_VISIBLE_DEVICES": "1"} == Peer.parse(name).visible({})
    here = {"CUDA_VISIBLE_DEVICES": "3, 5"}
    assert {} == Peer.parse("vllm").visible(here)
    assert {"CUDA_VISIBLE_DEVICES": "5"} == Peer.parse("ours-2-gpu1").visible(here)
    with pytest.raises(PeerError, match="has 2 GPUs, counted from 0: 3, 5"):
        Peer.parse("vllm-gpu2").visible(here)
    for name in ("vllm-tp2-gpu1", "ours-4-sets2-gpu0"):
        with pytest.raises(PeerError):
            Peer.parse(name)


def test_each_gpu_may_get_as_many_streams() -> None:
    """The load is for each GPU, and peers are compared with one GPU's share of theirs."""
    plan = Plan(
        tokenizer=tokenizer_of(None), input_tokens=1, output_tokens=1, streams=[256], modes=[True],
        repeats=2, start_seconds=1, row_seconds=1, limit_seconds=1, one_at_a_time=False,
        streams_per_gpu=True,
    )  # fmt: skip
    peers = [Peer.parse(name) for name in ("vllm-gpu1", "vllm-dp2")]
    measured = [(repeat, streams, peer.name) for repeat, _, streams, peer in plan.turns(peers)]
    assert [
        (0, 256, "vllm-gpu1"),
        (0, 512, "vllm-dp2"),
        (1, 512, "vllm-dp2"),
        (1, 256, "vllm-gpu1"),
    ] == measured
    rows = [row("vllm-gpu1", 100, streams=256), row("vllm-dp2", 195, streams=512)]
    assert ["| vllm-dp2 | 2 | 512 | 256 | 1.95 |"] == scaling_table(rows).splitlines()[2:]


def test_vllm_is_compared_on_as_many_gpus() -> None:
    """What is on two GPUs is a share of the best `vllm serve` on two."""
    rates = {"vllm": 100, "ours-2": 90, "vllm-tp2": 150, "ours-2-tp2": 120}
    lines = table([row(peer, rate) for peer, rate in rates.items()]).splitlines()
    for start in ("| ours-2-tp2 | 120 | 120 to 120 | 0.80 |", "| ours-2 | 90 | 90 to 90 | 0.90 |"):
        assert any(line.startswith(start) for line in lines)
