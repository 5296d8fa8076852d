"""A server that answers at once with fixed messages, to measure what the client alone can do.

The messages are as long as a real server's. Several processes share one port.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import socket
from collections.abc import Iterator
from typing import Any

_EVENT = {
    "triton-http": (
        b'data: {"model_name":"null","model_version":"1","num_output_tokens":1,'
        b'"text_output":" word"}\n\n'
    ),
    "openai": (
        b'data: {"id":"cmpl-0123456789abcdef","object":"text_completion","created":1,"model":"null"'
        b',"choices":[{"index":0,"text":" word","logprobs":null,"finish_reason":null,"stop_reason"'
        b':null}],"usage":{"completion_tokens":1}}\n\n'
    ),
}
_MAX_TOKENS = re.compile(rb'max_tokens\\?": ?(\d+)')


@contextlib.contextmanager
def null_server(protocol: str, processes: int) -> Iterator[str]:
    """Run one on a free port of the loopback interface; yield its address."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        started = context.Semaphore(0)
        servers = [
            context.Process(target=_main, args=(protocol, port, started), daemon=True)
            for _ in range(processes)
        ]
        try:
            for server in servers:
                server.start()
            for _ in servers:
                if not started.acquire(timeout=60):
                    raise RuntimeError("the null server did not start")
            yield f"127.0.0.1:{port}"
        finally:
            for server in servers:
                server.kill()
                server.join()


def _main(protocol: str, port: int, started: Any) -> None:
    serve = _serve_grpc if protocol == "triton-grpc" else _serve_http
    asyncio.run(serve(protocol, port, started))


async def _serve_http(protocol: str, port: int, started: Any) -> None:
    event = _EVENT[protocol]
    chunk = b"%x\r\n%b\r\n" % (len(event), event)
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = int(request.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                tokens = _max_tokens(await reader.readexactly(length))
                writer.write(head)
                for _ in range(tokens):
                    writer.write(chunk)
                    await asyncio.sleep(0)  # one write, and one read, a message
                writer.write(b"0\r\n\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, reuse_port=True)
    started.release()
    await server.serve_forever()


async def _serve_grpc(protocol: str, port: int, started: Any) -> None:
    import grpc
    from tritonclient.grpc import service_pb2

    message = service_pb2.ModelStreamInferResponse()
    response = message.infer_response
    response.model_name, response.model_version, response.id = "null", "1", "0"
    for name, datatype, raw in (
        ("text_output", "BYTES", b"\5\0\0\0 word"),
        ("num_output_tokens", "UINT32", b"\1\0\0\0"),
    ):
        response.outputs.add(name=name, datatype=datatype, shape=[1])
        response.raw_output_contents.append(raw)
    response.parameters["triton_final_response"].bool_param = False
    delta = message.SerializeToString()
    response.parameters["triton_final_response"].bool_param = True
    last = message.SerializeToString()

    async def stream(requests: Any, context: Any) -> Any:
        async for request in requests:
            for _ in range(_max_tokens(request) - 1):
                yield delta
            yield last

    method = grpc.stream_stream_rpc_method_handler(stream)
    service = grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelStreamInfer": method}
    )
    server = grpc.aio.server(options=[("grpc.so_reuseport", 1)])
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    started.release()
    await server.wait_for_termination()


def _max_tokens(request: bytes) -> int:
    found = _MAX_TOKENS.search(request)
    return int(found[1]) if found else 1
