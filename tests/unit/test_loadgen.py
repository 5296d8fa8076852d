"""The load generator: its prompts, its HTTP client, its figures, and runs against a null server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from loadgen import workload
from loadgen.clients import Clients
from loadgen.figures import figures, quantiles
from loadgen.http import HttpConnection
from loadgen.load import Load, Outcome, Record, RequestFailed, Target
from loadgen.null_server import null_server

RUN = Path(__file__).resolve().parents[2] / "bench/run.py"
WORDS = ["house", "garden", "river", "bridge", "stone", "light"]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that knows six words after a space, and begins with a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = ["<s>", *letters]
    merges = []
    for word in WORDS:
        for end in range(2, len(word) + 2):
            piece = f"Ġ{word}"[:end]
            if piece not in pieces:
                pieces.append(piece)
                merges.append((piece[:-1], piece[-1]))
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("tokens", [12, 17, 128])
def test_synthetic_prompts_are_exactly_as_long_as_asked(tokenizer_file: Path, tokens: int) -> None:
    """Each prompt is so many tokens by the model's tokenizer, its own first token included."""
    tokenizer = workload.ModelTokenizer(tokenizer_file.parent)
    prompts = workload.synthetic(tokenizer, 20, tokens, 7)
    theirs = Tokenizer.from_file(str(tokenizer_file))
    assert {tokens} == {len(theirs.encode(p.text).ids) for p in prompts}
    assert {7} == {p.output_tokens for p in prompts}


@pytest.mark.parametrize("tokens", [1, 2, 10, 129])
def test_without_a_tokenizer_a_common_word_is_a_token(tokens: int) -> None:
    """Any length can be asked for without a tokenizer, too."""
    (prompt,) = workload.synthetic(workload.tokenizer_of(None), 1, tokens, 1)
    assert tokens == len(prompt.text.split())


def test_synthetic_prompts_differ_but_in_a_shared_prefix() -> None:
    """A seed gives the same prompts again, another one others; a shared prefix is shared."""
    tokenizer = workload.tokenizer_of(None)
    prompts = workload.synthetic(tokenizer, 50, 128, 1, shared_prefix=40, seed=1)
    assert prompts == workload.synthetic(tokenizer, 50, 128, 1, shared_prefix=40, seed=1)
    assert prompts != workload.synthetic(tokenizer, 50, 128, 1, shared_prefix=40, seed=2)
    assert 50 == len({p.text for p in prompts})
    assert 1 == len({tuple(p.text.split()[:40]) for p in prompts})


def test_answers_may_be_of_different_length() -> None:
    """Evenly between the bounds, the same for a seed, with the prompts that there are without."""
    tokenizer = workload.tokenizer_of(None)
    prompts = workload.synthetic(tokenizer, 400, 8, 100, output_spread=0.5, seed=3)
    lengths = [prompt.output_tokens for prompt in prompts]
    assert prompts == workload.synthetic(tokenizer, 400, 8, 100, output_spread=0.5, seed=3)
    assert 50 <= min(lengths) < 60
    assert 140 < max(lengths) <= 150
    assert 95 < sum(lengths) / len(lengths) < 105
    alike = workload.synthetic(tokenizer, 400, 8, 100, seed=3)
    assert [p.text for p in alike] == [p.text for p in prompts]
    with pytest.raises(workload.WorkloadError, match="spread of 1"):
        workload.synthetic(tokenizer, 1, 8, 100, output_spread=1)


def test_a_sharegpt_file_gives_first_turns(tmp_path: Path) -> None:
    """Prompts are first turns, as long as their answers; what is unfit is left out."""

    def turns(*values: str) -> dict[str, Any]:
        return {"conversations": [{"from": "x", "value": value} for value in values]}

    path = tmp_path / "conversations.json"
    long = " ".join(["word"] * 3000)
    path.write_text(
        json.dumps([turns("a question", "one two three"), turns("no answer"), turns(long, "short")])
    )
    prompts = workload.sharegpt(path, workload.tokenizer_of(None), 2)
    assert [("a question", 4)] * 2 == [(p.text, p.output_tokens) for p in prompts]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [("a.json", "[]", "no prompt"), ("b.json", "{", "b.json"), ("c.txt", "\n \n", "no prompt")],
    ids=["empty", "not JSON", "blank lines"],
)
def test_a_dataset_without_prompts_is_said(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    """A file that holds no prompt is one line on stderr and exit code 2."""
    (tmp_path / name).write_text(content)
    outcome = run("--null", f"--dataset={tmp_path / name}")
    assert 2 == outcome.returncode
    assert expected in outcome.stderr
    assert 1 == outcome.stderr.count("\n")


class Wire:
    """A transport that remembers what is written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data


def answer_in_pieces(answer: bytes, size: int, *, stream: bool = True) -> Record:
    """Feed an HTTP answer to a connection in pieces of a size; return its record."""

    async def ask() -> Record:
        connection, record = HttpConnection(stream), Record(0.0)
        wire: Any = Wire()
        connection.connection_made(wire)
        asking = asyncio.create_task(connection.ask(b"request", record))
        await asyncio.sleep(0)
        for begin in range(0, len(answer), size):
            connection.data_received(answer[begin : begin + size])
        await asyncio.wait_for(asking, 5)
        assert b"request" == wire.written
        return record

    return asyncio.run(ask())


def chunked(*events: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(e), e) for e in events) + b"0\r\n\r\n"


TRITON_STREAM = chunked(
    b'data: {"model_name":"m","num_output_tokens":2,"text_output":" a \\"text\\":\\"\\""}\n\n',
    b'data: {"model_name":"m","num_output_tokens":1,"text_output":" b"}\n\n',
    b'data: {"model_name":"m","num_output_tokens":0,"text_output":""}\n\n',
)
OPENAI_STREAM = chunked(
    b'data: {"choices":[{"text":" a"}]}\n\ndata: {"choices":[{"text":""}]}\n\n',
    b'data: {"choices":[{"text":" b"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3}}\n\n',
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
@pytest.mark.parametrize("answer", [TRITON_STREAM, OPENAI_STREAM], ids=["triton", "openai"])
def test_messages_are_counted_however_they_are_cut(answer: bytes, size: int) -> None:
    """Messages with text and tokens are counted, wherever TCP cuts the stream."""
    record = answer_in_pieces(answer, size)
    assert (2, 3) == (len(record.times), record.tokens)


def test_an_answer_that_is_no_stream_is_one_message() -> None:
    """A whole answer has one time, and its tokens."""
    body = b'{"choices":[{"text":" a b"}],"usage":{"completion_tokens":2}}'
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    record = answer_in_pieces(answer, 10, stream=False)
    assert (1, 2) == (len(record.times), record.tokens)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 3\r\n\r\nbad", "HTTP status 400: bad"),
        (chunked(b'data: {"error":"too long"}\n\n'), "too long"),
        (b"nonsense\r\n\r\n", "not HTTP"),
    ],
    ids=["status", "in the stream", "not HTTP"],
)
def test_errors_fail_the_request(answer: bytes, expected: str) -> None:
    """An error status, an error in a stream and no HTTP at all are failures that say what came."""
    with pytest.raises(RequestFailed, match=expected):
        answer_in_pieces(answer, 1000)


def test_figures_are_of_complete_requests() -> None:
    """Times count from when a request was due; a failed one only counts as failed."""
    records = (
        Record(10.0, array("d", [10.5, 10.6, 10.8]), 11.0, tokens=6),
        Record(10.0, array("d", [11.5, 11.6, 11.7]), 12.0, tokens=4),
        Record(10.0, array("d", [10.1]), 10.1, tokens=1, error="broken off"),
    )
    found = figures([Outcome(records, cpu_seconds=1.0, wall_seconds=2.0)])
    assert (2, 1, {"broken off": 1}) == (found.requests, found.failed, found.errors)
    assert (5.0, 1.0, 3.0) == (
        found.tokens_per_second,
        found.requests_per_second,
        found.messages_per_request,
    )
    assert {"p50": 500.0, "p90": 1500.0, "p99": 1500.0} == found.ttft_ms
    assert {"p50": 100.0, "p90": 200.0, "p99": 200.0} == found.gap_ms
    assert (0.5, 0.5) == (found.client_cpu, found.client_cpu_total)


def test_quantiles_are_of_the_nearest_rank() -> None:
    """p99 of a hundred is the second largest; nothing has no quantile."""
    assert {"p50": 50e3, "p90": 90e3, "p99": 99e3} == quantiles([float(n) for n in range(1, 101)])
    assert {} == quantiles([])


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), *flags], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(params=["triton-grpc", "triton-http", "openai"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol."""
    return str(request.param)


def test_the_client_is_measured_by_a_null_server(protocol: str) -> None:
    """Against canned answers every message of every request is counted, and the client's cost."""
    outcome = run(
        "--null", f"--protocol={protocol}", "--streams=4", "--requests=12", "--output-tokens=20",
        "--processes=2", "--warmup=2", "--json",
    )  # fmt: skip
    assert 0 == outcome.returncode, outcome.stderr
    found = json.loads(outcome.stdout)
    assert (12, 0, 240) == (found["requests"], found["failed"], found["output_tokens"])
    assert 20 == found["messages_per_request"]
    assert 0 < found["client_us_per_message"]


def test_clients_recover_from_a_server_that_is_not_there() -> None:
    """After a load that no server took, the next one runs as if nothing had been."""
    prompts = workload.synthetic(workload.tokenizer_of(None), 8, 10, 3)
    with null_server("openai", 1) as address, Clients(2) as clients:
        nobody = Load(Target("127.0.0.1:9", "openai", "m"), prompts, 4)
        with pytest.raises(ConnectionRefusedError):
            clients.run(nobody)
        found = figures(clients.run(Load(Target(address, "openai", "m"), prompts, 4)))
    assert (8, 0, 24) == (found.requests, found.failed, found.output_tokens)


def test_open_loop_sends_at_its_rate() -> None:
    """Forty requests at a fixed forty a second take about a second."""
    outcome = run(
        "--null", "--protocol=openai", "--rate=40", "--fixed-rate", "--requests=40", "--json",
        "--output-tokens=2", "--processes=1",
    )  # fmt: skip
    assert 0 == outcome.returncode, outcome.stderr
    found = json.loads(outcome.stdout)
    assert 40 == found["requests"]
    assert 0.9 < found["seconds"] < 10


def test_requests_end_with_the_time() -> None:
    """After --seconds nothing more is sent, and what was sent is complete."""
    outcome = run(
        "--null", "--protocol=openai", "--rate=50", "--requests=5000", "--seconds=1", "--json",
        "--output-tokens=2", "--processes=2",
    )  # fmt: skip
    assert 0 == outcome.returncode, outcome.stderr
    assert 1 <= json.loads(outcome.stdout)["requests"] < 500


def test_no_server_is_one_line(protocol: str) -> None:
    """Where nothing listens, the run fails with the reason."""
    outcome = run(f"--protocol={protocol}", "--url=127.0.0.1:9", "--requests=2", "--streams=1")
    assert 1 == outcome.returncode
    assert "Traceback" not in outcome.stderr
    assert "127.0.0.1:9" in outcome.stdout + outcome.stderr
