"""What it costs to notice that clients leave, with 256 live requests, and how soon it is noticed.

python -m tests.load.cancellation_cost, with the environment that scripts/soak.sh sets.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from tests.e2e.grpc_requests import Request, sampling
from tests.e2e.tiny_server import CONTEXT, add_tiny_model
from tests.e2e.triton_server import TritonServer

LIVE = 256
SECONDS = 20
CANCELS = 20


def main() -> int:
    """Measure on a server of our own, and print two lines."""
    with tempfile.TemporaryDirectory() as directory:
        repository = add_tiny_model(
            Path(directory),
            {"drain_timeout_seconds": 1},
            max_num_seqs=LIVE,
            enable_log_requests=True,
        )
        server = TritonServer(repository, "cancellation_cost", "vllm")
        try:
            measure(server)
        finally:
            server.kill()
    return 0


def measure(server: TritonServer) -> None:
    (stub,) = server.processes("triton_python_backend_stub")
    with ExitStack() as stack:
        requests = [stack.enter_context(Request(server, endless())) for _ in range(LIVE)]
        await_added(server)
        before, since = cpu_seconds(stub), time.monotonic()
        time.sleep(SECONDS)
        share = (cpu_seconds(stub) - before) / (time.monotonic() - since)
        print(f"{LIVE} live requests: the thread takes {share:.1%} of one core")
        delays = sorted(delay_of_cancel(server, request) for request in requests[:CANCELS])
        print(
            f"from cancel to abort: median {statistics.median(delays) * 1000:.0f} ms, "
            f"longest of {CANCELS} {delays[-1] * 1000:.0f} ms"
        )


def endless() -> dict[str, object]:
    """Return the inputs of a request that is not streamed, so that the client costs nothing."""
    return {
        "text_input": "Hello",
        "sampling_parameters": sampling(max_tokens=CONTEXT - 10, ignore_eos=True),
    }


def await_added(server: TritonServer) -> None:
    deadline = time.monotonic() + 120
    while server.log.read_bytes().count(b"Added request") < LIVE:
        assert time.monotonic() < deadline, "not all requests came in"
        time.sleep(0.1)


def cpu_seconds(stub: psutil.Process) -> float:
    """Return the processor time of the stub's thread that watches for cancellations."""
    for thread in stub.threads():
        comm = Path(f"/proc/{stub.pid}/task/{thread.id}/comm")
        if comm.read_text().strip() == "cancellation":
            return float(thread.user_time + thread.system_time)
    raise AssertionError("no thread is called cancellation")


def delay_of_cancel(server: TritonServer, request: Request) -> float:
    since = server.log_size()
    start = time.monotonic()
    request.cancel()
    while b"Aborted request" not in server.log.read_bytes()[since:]:
        assert time.monotonic() - start < 30, "not aborted"
        time.sleep(0.005)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
