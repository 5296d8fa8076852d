"""A vLLM model on Triton: one request in, a stream of responses out.

Triton loads this file in a stub process and calls ``initialize``, ``execute`` for each request,
and ``finalize``. The life of a request is ``execute`` and ``_serve``; what each step means is in
the package ``triton_vllm`` beside this file.
"""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils

from triton_vllm.config.server_options import ServerOptions
from triton_vllm.config.settings import ModelSettings
from triton_vllm.engine.load import load_engine
from triton_vllm.errors import GenerationError, ServingError, SettingsError, one_line
from triton_vllm.limits.cancellation import CancellationWatcher
from triton_vllm.limits.http_backlog import watch_http_backlog
from triton_vllm.log import log_to_triton
from triton_vllm.metrics.export import export_metrics
from triton_vllm.protocol.decode import Host, decode, read_request_id
from triton_vllm.protocol.requests import GenerationRequest
from triton_vllm.protocol.schema import complete_config
from triton_vllm.protocol.stream import ResponseStream, SenderPool
from triton_vllm.topology.stub_process import leave_no_core_dump, prepare_process


class TritonPythonModel:
    """One front end of a vLLM engine."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declare the tensors that config.pbtxt does not."""
        return complete_config(config)

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model. A load that fails has one line with what to change."""
        prepare_process()
        log_to_triton(pb_utils.Logger)
        server = ServerOptions.read()
        try:
            settings = ModelSettings.from_triton(args)
            self._engine = load_engine(settings, server)
        except SettingsError as error:
            raise pb_utils.TritonModelException(str(error)) from None
        self._host = Host.of(args["model_config"], server)
        serving = settings.serving
        self._responses = SenderPool(
            pb_utils,
            settings.sender_threads,
            serving.max_tokens_per_response,
            self._engine.loop.call_soon,
            settings.name,
            watch_http_backlog(server, settings.placement.instances, settings.name),
        )
        self._cancellations = CancellationWatcher(serving.cancellation_poll_seconds)
        self._metrics = export_metrics(pb_utils, settings, self._engine, self._responses.traffic)

    def execute(self, requests: list[Any]) -> None:
        """Accept requests; the responses follow on their own."""
        for request in requests:
            sender, request_id = request.get_response_sender(), "request"
            try:
                self._engine.admission.check()
                request_id = read_request_id(request) or request_id
                decoded = decode(request, self._engine.parser, self._host)  # 1. decode
            except BaseException as error:  # a panic of Rust's, such as pydantic's, is no Exception
                self._responses.open(sender).fail(self._explained(error, request_id))
            else:
                self._engine.spawn(self._serve(decoded, self._responses.open(sender, decoded)))
        self._engine.backpressure()  # at once, but where another engine has less to do

    def is_ready(self) -> bool:
        """Tell Triton, where it asks (26.03), whether the engine serves."""
        return self._engine.is_up

    async def _serve(self, request: GenerationRequest, stream: ResponseStream) -> None:
        """Answer one request. Its stream is closed exactly once in every case."""
        try:
            with (
                self._engine.admit(request, stream) as live,
                self._cancellations.watch(live, stream.is_cancelled),
            ):
                work = await self._engine.render(request)  # 2. tokenize

                def send(output: Any) -> None:
                    delta = work.read(output)
                    if delta.has_content:
                        stream.send(delta)  # 4. send; 5. the final delta finishes

                async for output in work.outputs(send):  # 3. generate
                    send(output)
                # Ignored after the final delta, which every complete request has.
                stream.fail(GenerationError("the engine ended without a final output"))
        except BaseException as error:  # without its FINAL flag the model could not be unloaded
            stream.fail(self._explained(error, request.request_id))

    def _explained(self, error: BaseException, request_id: str) -> ServingError:
        """Return what ends a request, as an error to send, whatever fails in explaining it."""
        try:
            return self._engine.to_serving_error(error, request_id)
        except Exception as failure:
            return GenerationError(f"{type(error).__name__}, not explained: {one_line(failure)}")

    def finalize(self) -> None:
        """Unload: end the engine, send what is left to send, stop the threads."""
        self._metrics.stop()
        self._engine.shutdown()
        self._cancellations.stop()
        self._responses.stop(timeout=5.0)
        leave_no_core_dump()
