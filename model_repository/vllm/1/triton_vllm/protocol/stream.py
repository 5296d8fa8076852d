"""Sends responses: sender threads turn deltas into Triton responses, outside the event loop.

``send`` blocks until the server has taken the response, 60 to 350 µs each, with the GIL
released. So the event loop only puts deltas into an outbox, which wakes its sender thread once
for all that the loop does in one turn, such as a step of the engine. Each stream belongs to one
sender thread, which keeps its order. A delta travels alone as long as the thread keeps up; what
has piled up when it comes back is merged, so that a slow server gets fewer and longer responses
and no text is lost.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any

from triton_vllm.counters import MergeWarning, Traffic
from triton_vllm.errors import GenerationError, ServingError, one_line
from triton_vllm.limits.http_backlog import NoHttpBacklog
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.encode import ResponseEncoder
from triton_vllm.protocol.requests import GenerationRequest

logger = logging.getLogger(__name__)

Message = Delta | ServingError


class Outbox:
    """What waits for one sender thread. ``put`` and ``flush`` may be called by any thread."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """``call_soon`` calls a function in the event loop, after what runs there now."""
        self.queue: SimpleQueue[list[Any] | None] = SimpleQueue()  # None ends the thread
        self._call_soon = call_soon
        self._waiting: deque[Any] = deque()
        self._is_flush_due = False
        self._flushing = threading.Lock()  # else two threads might hand over in the wrong order

    def put(self, item: Any) -> None:
        """Add an item. The thread gets it with the others of this turn of the event loop."""
        self._waiting.append(item)
        if not self._is_flush_due:
            self._is_flush_due = True
            try:
                self._call_soon(self.flush)
            except RuntimeError:  # the event loop has ended
                self.flush()

    def flush(self) -> None:
        """Hand the items to the thread."""
        with self._flushing:
            self._is_flush_due = False  # first: what is put from now on is flushed again
            items = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if items:
                self.queue.put(items)


class ResponseStream:
    """The responses to one request, in order, closed exactly once.

    ``send`` and ``fail`` may be called by any thread; they only enqueue. ``deliver`` is for the
    sender thread that the stream belongs to.
    """

    def __init__(
        self,
        encoder: ResponseEncoder,
        sender: Any,
        outbox: Outbox,
        request: GenerationRequest | None,
    ) -> None:
        self._encoder = encoder
        self._sender = sender
        self._outbox = outbox
        self._closed = False
        self._closing = threading.Lock()
        self._so_far: Delta | None = None
        self.outcome = "ok"  # what a good end counts as
        self.request = request

    def send(self, delta: Delta) -> None:
        """Queue new text. A delta that is ``final`` closes the stream."""
        self._outbox.put((self, delta))

    def fail(self, error: ServingError) -> None:
        """Queue an error, which closes the stream. After the final delta it is ignored."""
        self._outbox.put((self, error))
        if self.request is None:  # refused in Triton's thread: it need not wait for the event loop
            self._outbox.flush()

    def is_cancelled(self) -> bool:
        """Return whether the client has cancelled or gone. Costs about 50 µs.

        Triton frees what this asks about when it gets the FINAL flag, and asking then crashes the
        server: hence the lock, which only the last response shares.
        """
        with self._closing:
            return not self._closed and bool(self._sender.is_cancelled())

    def deliver(self, message: Message) -> int:
        """Send a message, the last one with the FINAL flag. Returns the number of responses."""
        if self._closed:
            return 0
        if isinstance(message, ServingError):
            self._finish(self._encoder.of_error(message))
            return 1
        assert self.request is not None, "only an undecoded request has none, and it only fails"
        is_final = message.final
        if self.request.text_from_start:
            self._so_far = message = self._so_far + message if self._so_far else message
        response, is_large = self._encoder.of_delta(message, self.request)
        if is_final and not is_large:
            self._finish(response)
            return 1
        # A send with the FINAL flag that fails, for want of shared memory, can never be repeated:
        # after a large response the flag travels alone, and a failure is still answered.
        self._sender.send(response, 0)
        if is_final:
            self._finish(None)
        return 1 + is_final

    def close(self) -> int:
        """Send a plain error, or the FINAL flag alone. Returns the number of responses.

        The last resort for an error that cannot be sent: without the flag, Triton never frees the
        request, and the model cannot be unloaded.
        """
        if self._closed:
            return 0
        plain = GenerationError("the error cannot be sent, see the log")
        try:
            response = self._encoder.of_error(plain)
        except Exception:
            response = None
        self._finish(response)
        return 1

    def _finish(self, response: Any) -> None:
        with self._closing:
            self._closed = True
        self._sender.send(response, self._encoder.final_flag)


class SenderPool:
    """The sender threads of one front end. ``traffic`` holds what each of them has sent."""

    def __init__(
        self,
        pb_utils: Any,
        threads: int,
        max_tokens_per_response: int,
        call_soon: Callable[[Callable[[], None]], object],
        model: str = "model",
        http_backlog: NoHttpBacklog | None = None,
    ) -> None:
        """Start ``threads`` threads. ``max_tokens_per_response`` bounds merging; 0: no bound.

        ``call_soon`` calls a function in the event loop, after what runs there now; ``model`` is
        the name for the log. ``http_backlog`` may make a thread wait before it sends.
        """
        self._http_backlog = http_backlog or NoHttpBacklog()
        self._max_tokens = max_tokens_per_response or None
        self._outboxes = [Outbox(call_soon) for _ in range(threads)]
        self._encoders = [ResponseEncoder(pb_utils) for _ in range(threads)]
        self._next = itertools.cycle(zip(self._encoders, self._outboxes, strict=True))
        self.traffic = [Traffic() for _ in self._outboxes]
        self._warning = MergeWarning(model, self.traffic)
        self._threads = [
            threading.Thread(target=self._run, args=(o.queue, t), name=f"sender-{i}", daemon=True)
            for i, (o, t) in enumerate(zip(self._outboxes, self.traffic, strict=True))
        ]
        for thread in self._threads:
            thread.start()

    def open(self, sender: Any, request: GenerationRequest | None = None) -> ResponseStream:
        """Return the stream of responses to one request. Called by one thread only."""
        encoder, outbox = next(self._next)
        return ResponseStream(encoder, sender, outbox, request)

    def stop(self, timeout: float) -> None:
        """Send what is queued, then end the threads. Returns after ``timeout`` seconds at most."""
        self._http_backlog.close()
        for outbox in self._outboxes:
            outbox.flush()
            outbox.queue.put(None)
        for thread in self._threads:
            thread.join(timeout / len(self._threads))
        for encoder in self._encoders:
            encoder.forget()

    def _run(self, queue: SimpleQueue[list[Any] | None], traffic: Traffic) -> None:
        while True:
            handed = [queue.get()]
            handed += [queue.get() for _ in range(queue.qsize())]
            messages = [item for items in handed for item in items or ()]
            try:
                merged = merge(messages, self._max_tokens)
            except Exception as error:
                logger.error(f"deltas not merged: {one_line(error)}")
                merged = messages
            traffic.merged_deltas += len(messages) - len(merged)
            since = time.perf_counter()
            for stream, message in merged:
                waited = self._http_backlog.before_send()
                traffic.http_wait_seconds += waited
                since += waited
                self._deliver(stream, message, traffic)
            traffic.seconds += time.perf_counter() - since
            if self._http_backlog.is_behind:
                self._warning.postpone()
            else:
                self._warning.check()
            if None in handed:
                return

    def _deliver(self, stream: ResponseStream, message: Message, traffic: Traffic) -> None:
        """Send a message. What cannot be sent ends its stream, with an error if possible."""
        try:
            sent = stream.deliver(message)
        except Exception as error:
            why = f"response not sent: {one_line(error)}"
            self._log_error(stream, why)
            if isinstance(message, ServingError):
                self._close(stream, message, traffic)
            else:
                self._deliver(stream, GenerationError(why), traffic)
            return
        traffic.responses += sent
        if sent and (isinstance(message, ServingError) or message.final):
            traffic.outcomes[getattr(message, "outcome", stream.outcome)] += 1

    def _close(self, stream: ResponseStream, error: ServingError, traffic: Traffic) -> None:
        """Close and count a stream whose ``error`` could not be sent."""
        traffic.outcomes[error.outcome] += 1
        try:
            traffic.responses += stream.close()
        except Exception as failure:
            self._log_error(stream, f"FINAL flag not sent: {one_line(failure)}")

    def _log_error(self, stream: ResponseStream, text: str) -> None:
        request_id = stream.request.request_id if stream.request else "(undecoded)"
        logger.error(f"{request_id}: {text}")


def merge(
    items: Iterable[tuple[ResponseStream, Message]], max_tokens: int | None
) -> list[tuple[ResponseStream, Message]]:
    """Merge the deltas of each stream, keeping each stream's order.

    No merged delta has more than ``max_tokens`` tokens (None: no bound), unless a single
    delta already has more.
    """
    merged: list[tuple[ResponseStream, Message]] = []
    last: dict[ResponseStream, int] = {}  # the index of its newest message in `merged`
    for stream, message in items:
        if stream in last and isinstance(message, Delta):
            before = merged[last[stream]][1]
            if isinstance(before, Delta) and (
                max_tokens is None or before.num_tokens + message.num_tokens <= max_tokens
            ):
                merged[last[stream]] = (stream, before + message)
                continue
        last[stream] = len(merged)
        merged.append((stream, message))
    return merged
