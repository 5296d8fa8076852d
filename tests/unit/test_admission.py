"""Which requests are admitted, and what ends them: once, with one reason."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from triton_vllm.errors import (
    CancelledError,
    EngineDownError,
    RequestTimeoutError,
    ServingError,
    UnavailableError,
)
from triton_vllm.limits import admission as admission_module
from triton_vllm.limits.admission import OPENAI, TRITON, Admission, LiveRequest
from triton_vllm.topology.load_balancing import NoLoadBalancer


class CountingBalancer(NoLoadBalancer):
    """Counts as the real one does."""

    def __init__(self) -> None:
        self.requests = 0

    def accepted_http(self) -> None:
        self.requests += 1

    def finished(self) -> None:
        self.requests -= 1


def make(
    max_concurrent_requests: int = 0, max_queued_tokens: int = 0, queued: int = 0
) -> Admission:
    return Admission(max_concurrent_requests, max_queued_tokens, lambda: queued, NoLoadBalancer())


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(main, 30))


def test_a_request_above_the_limit_is_refused_with_the_limit() -> None:
    """As many as the limit are admitted; when one ends, another is."""
    admission = make(max_concurrent_requests=2)

    async def main() -> None:
        with admission.admit():
            with admission.admit():
                expected = r"2 requests .* is 2 \(max_concurrent_requests\)"
                with pytest.raises(UnavailableError, match=expected):
                    admission.check()
                with pytest.raises(UnavailableError), admission.admit():
                    pass
                assert 2 == admission.count()
            with admission.admit():
                assert 2 == admission.count()
        assert 0 == admission.count()

    run(main())


def test_a_request_that_fails_is_live_no_more() -> None:
    """Its own exception passes."""
    admission = make(max_concurrent_requests=1)

    async def main() -> None:
        with pytest.raises(KeyError), admission.admit():
            raise KeyError
        assert 0 == admission.count()

    run(main())


def test_waiting_prompts_are_counted_in_tokens() -> None:
    """While too many prompt tokens wait, no request is admitted."""

    async def main() -> None:
        full = make(max_queued_tokens=40, queued=50)
        expected = r"50 prompt tokens .* 40 \(max_queued_tokens\)"
        with pytest.raises(UnavailableError, match=expected), full.admit():
            pass
        with make(max_queued_tokens=60, queued=50).admit():
            pass

    run(main())


def test_an_api_has_served_once_a_request_was_admitted() -> None:
    """Not by one that was refused; and it stays so."""
    admission = make(max_concurrent_requests=1)

    async def main() -> None:
        refused = pytest.raises(UnavailableError)
        with admission.admit(TRITON), refused, admission.admit(OPENAI):
            pass
        assert {TRITON} == admission.served

    run(main())


def test_what_is_full_is_still_open() -> None:
    """Health does not depend on load."""
    full = make(max_queued_tokens=40, queued=40)
    full.check_open()
    room = make(max_queued_tokens=40, queued=39)
    assert (False, True) == (full.has_room_in_queue, room.has_room_in_queue)
    full.close(UnavailableError("the server stops"))
    with pytest.raises(UnavailableError, match="the server stops"):
        full.check_open()


def test_without_limits_every_request_is_admitted() -> None:
    """Zero is no limit."""

    async def main() -> None:
        admission = make(queued=10**9)
        with admission.admit():
            admission.check()

    run(main())


def test_closing_refuses_new_requests_and_keeps_live_ones() -> None:
    """With the reason; reopening admits again."""
    admission = make()

    async def main() -> None:
        with admission.admit():
            admission.close(UnavailableError("the server stops"))
            with pytest.raises(UnavailableError, match="the server stops"):
                admission.check()
            assert 1 == admission.count()
            admission.reopen()
            admission.check()

    run(main())


def test_while_the_engine_is_down_its_reason_is_raised() -> None:
    """Whatever else keeps requests out."""
    admission = make()
    admission.close(UnavailableError("the server stops"))
    admission.down = EngineDownError("the engine died")
    with pytest.raises(EngineDownError, match="the engine died"):
        admission.check()


async def serve(admission: Admission, api: str = TRITON, **how: Any) -> ServingError | None:
    """Be live until something ends it; return what has."""
    try:
        with admission.admit(api, **how):
            await asyncio.sleep(60)
    except ServingError as why:
        return why
    return None


async def live(admission: Admission, *apis: str) -> list[asyncio.Task[ServingError | None]]:
    """Start a request of each API."""
    tasks = [asyncio.create_task(serve(admission, api)) for api in apis]
    await asyncio.sleep(0)
    return tasks


def test_ending_all_ends_each_with_the_reason() -> None:
    """Of both APIs, or of one; the number is returned, and what has been ended is not counted."""
    admission = make()

    async def main() -> None:
        tasks = await live(admission, TRITON, OPENAI, OPENAI)
        drained, died = UnavailableError("drained"), EngineDownError("died")
        assert (2, 1) == (admission.end_all(drained, OPENAI), admission.end_all(died))
        assert [died, drained, drained] == await asyncio.gather(*tasks)
        assert 0 == admission.count()

    run(main())


def test_the_first_reason_wins() -> None:
    """And the abort that it starts is not interrupted by the second."""
    admission = make()
    cleaned_up: list[str] = []

    async def request(live: list[LiveRequest]) -> None:
        with admission.admit() as request:
            live.append(request)
            try:
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.05)
                cleaned_up.append("aborted in the engine")

    async def main() -> None:
        requests: list[LiveRequest] = []
        task = asyncio.create_task(request(requests))
        await asyncio.sleep(0)
        first, second = CancelledError("client left"), EngineDownError("died")
        assert [True, False] == [requests[0].end(first), requests[0].end(second)]
        await asyncio.sleep(0.01)
        assert 0 == admission.end_all(second)
        with pytest.raises(CancelledError, match="client left"):
            await task

    run(main())
    assert ["aborted in the engine"] == cleaned_up


def test_what_the_engine_raises_when_it_is_ended_is_replaced_by_the_reason() -> None:
    """A client is told why, and not what came of it."""
    admission = make()

    async def main() -> None:
        async def fail() -> None:
            with admission.admit() as request:
                request.end(UnavailableError("drained"))
                raise KeyError

        with pytest.raises(UnavailableError, match="drained"):
            await fail()

    run(main())


def test_a_request_that_says_it_is_complete_is_not_ended() -> None:
    """An HTTP response whose last byte is out."""
    admission = make()

    async def main() -> None:
        with admission.admit(OPENAI, stop=lambda: False) as request:
            assert not request.end(UnavailableError("drained"))

    run(main())


def test_waiting_is_bounded_and_ends_with_the_requests() -> None:
    """One that does not end is left behind."""
    admission = make()

    async def main() -> None:
        await admission.wait(60)
        tasks = await live(admission, TRITON)
        await admission.wait(0.05)
        assert not tasks[0].done()
        admission.end_all(UnavailableError("drained"))
        await admission.wait(60)
        assert tasks[0].done()

    run(main())


@pytest.mark.parametrize("api", [TRITON, OPENAI])
def test_the_balancer_sees_each_request_once(api: str) -> None:
    """One of Triton's is counted when ``execute`` accepts it, admitted or not."""
    balancer = CountingBalancer()
    admission = Admission(1, 0, lambda: 0, balancer)

    async def main() -> None:
        for _ in range(2):
            balancer.requests += api == TRITON
        with admission.admit(api):
            assert 1 + (api == TRITON) == balancer.requests
            with pytest.raises(UnavailableError), admission.admit(api):
                pass
        assert 0 == balancer.requests

    run(main())


def test_a_timeout_ends_a_request_in_words() -> None:
    """In place of a cancellation."""

    async def main() -> None:
        why = await serve(make(), timeout=0.01)
        assert isinstance(why, RequestTimeoutError)
        assert "request timed out after 0.01 s" == str(why)

    run(main())


def test_a_request_that_ends_in_time_is_left_alone() -> None:
    """Its timer ends with it."""

    async def main() -> None:
        with make().admit(timeout=0.05) as request:
            pass
        await asyncio.sleep(0.1)
        assert request.why is None

    run(main())


def test_finishing_keeps_the_text_so_far() -> None:
    """The generation is ended by the engine, and nothing is cancelled."""

    async def main() -> None:
        done = asyncio.Event()
        with make().admit(timeout=0.01, finish=done.set):
            await done.wait()

    run(main())


def test_what_does_not_finish_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that does not return its text is not waited for."""
    monkeypatch.setattr(admission_module, "_GRACE", 0.01)

    async def main() -> None:
        why = await serve(make(), timeout=0.01, finish=lambda: None)
        assert isinstance(why, RequestTimeoutError)

    run(main())


class Queue:
    """The prompts that wait for their prefill, in tokens."""

    def __init__(self, limit: int) -> None:
        self.tokens = 0
        self.admission = Admission(0, limit, lambda: self.tokens, NoLoadBalancer())

    async def serve(self, *prompts: int, rendered: asyncio.Event) -> str:
        """Serve a request of some prompts, which are tokenized off the event loop."""
        try:
            with self.admission.admit() as request:
                await rendered.wait()
                await asyncio.gather(*(self._add(tokens) for tokens in prompts))
        except UnavailableError as why:
            return "refused" if why is request.why else "refused for another reason"
        return "served"

    async def _add(self, tokens: int) -> None:
        self.admission.join_queue()
        self.tokens += tokens


def test_a_burst_of_long_prompts_is_refused_when_it_joins_the_queue() -> None:
    """All were admitted while none waited; each is checked again when its prompt is to wait."""

    async def main() -> list[str]:
        queue, rendered = Queue(limit=40), asyncio.Event()
        requests = [asyncio.create_task(queue.serve(30, rendered=rendered)) for _ in range(5)]
        await asyncio.sleep(0)
        assert 5 == queue.admission.count()
        rendered.set()
        return await asyncio.gather(*requests)

    assert ["served", "served", "refused", "refused", "refused"] == run(main())


def test_a_request_of_many_prompts_is_checked_once() -> None:
    """One that is larger than the limit is served, also by tasks of its own: its first fits."""

    async def main() -> str:
        queue, rendered = Queue(limit=40), asyncio.Event()
        rendered.set()
        return await queue.serve(30, 30, 30, 30, rendered=rendered)

    assert "served" == run(main())


def test_a_prompt_without_a_request_is_checked_each_time() -> None:
    """As in vLLM's own warm-up."""
    full = make(max_queued_tokens=40, queued=50)
    with pytest.raises(UnavailableError):
        full.join_queue()
    make(max_queued_tokens=60, queued=50).join_queue()
