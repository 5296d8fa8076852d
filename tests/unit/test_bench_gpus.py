"""The bench on several GPUs: peers, loads, ratios, and what bench/gpus.sh compares.

A stand-in for python3 tells how that calls it.
"""

from __future__ import annotations

import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from loadgen.workload import tokenizer_of
from peers.comparison import Plan
from peers.peer import Peer, PeerError
from peers.report import scaling_table, table
from tests.unit.test_peers import row

GPUS = Path(__file__).resolve().parents[2] / "bench/gpus.sh"


@pytest.fixture
def called(tmp_path: Path) -> Path:
    """The calls of python3, a line each; it takes as long as the variable NAP says."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    fake = bin_folder / "python3"
    fake.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/called\nexec sleep "${{NAP:-0}}"\n')
    fake.chmod(0o755)
    return tmp_path / "called"


def gpus(called: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script."""
    environment = {**os.environ, **variables, "PATH": f"{called.parent}/bin:{os.environ['PATH']}"}
    command = [str(GPUS), *options]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_three_comparisons(called: Path) -> None:
    """Each has its peers, whose names mean something, and its configuration, which is there."""
    outcome = gpus(called, "out", "--model", "m", SUFFIX="-http")
    assert 0 == outcome.returncode, outcome.stderr
    lines = [line.split() for line in called.read_text().splitlines()]
    assert ["out/tp", "out/dp", "out/sets"] == [line[line.index("--out") + 1] for line in lines]
    for line in lines:
        assert "m" == line[line.index("--model") + 1]
        assert Path(line[line.index("--config") + 1]).exists()
        peers = [Peer.parse(name) for name in line[line.index("--peers") + 1].split(",")]
        assert {1, 2} == {peer.gpus for peer in peers}
        on_one = Counter(peer.gpu or 0 for peer in peers if peer.gpus == 1)
        on_both = sum(peer.gpus == 2 for peer in peers)
        assert max(on_one.values()) + on_both <= 3
    assert ["--streams-per-gpu" in line for line in lines] == [False, True, True]


def test_a_mixture_of_experts_is_compared_where_asked_for(called: Path) -> None:
    """All its peers are on two GPUs; vLLM and ours have their experts divided alike."""
    outcome = gpus(called, "out", "--model", "m", COMPARISONS="moe")
    assert 0 == outcome.returncode, outcome.stderr
    (line,) = [line.split() for line in called.read_text().splitlines()]
    assert Path(line[line.index("--config") + 1]).exists()
    peers = [Peer.parse(name) for name in line[line.index("--peers") + 1].split(",")]
    assert {2} == {peer.gpus for peer in peers}
    ours, vllms = ([p.parallelism for p in peers if p.kind == kind] for kind in ("ours", "vllm"))
    assert ours == vllms
    assert {"data_parallel_size": 2, "enable_expert_parallel": True} in ours


def test_it_ends_by_itself(called: Path) -> None:
    """What no time is left for is left out."""
    outcome = gpus(called, "out", LIMIT_SECONDS="61", NAP="4")
    assert 1 == outcome.returncode
    assert "sets: left out, the time is over" in outcome.stderr
    assert 1 == len(called.read_text().splitlines())


def test_a_wrong_comparison_is_refused(called: Path) -> None:
    """A name that is none ends it."""
    assert 2 == gpus(called, "out", COMPARISONS="pp").returncode


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
    with pytest.raises(PeerError):
        Peer.parse("vllm-sets2")


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


def test_two_gpus_may_get_twice_the_streams() -> None:
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
