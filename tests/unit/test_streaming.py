"""Responses: order, merging, errors, and the FINAL flag exactly once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from itertools import groupby, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import FakeSender, Sent, at_once, fake_pb_utils, generation_request, logged
from triton_vllm.counters import MergeWarning, Traffic
from triton_vllm.errors import GenerationError, RequestError, UnavailableError
from triton_vllm.protocol.delta import Delta, DeltaExtras, SequenceExtras
from triton_vllm.protocol.encode import ResponseEncoder
from triton_vllm.protocol.outputs import OUTPUTS
from triton_vllm.protocol.stream import Message, Outbox, ResponseStream, SenderPool, merge


@pytest.fixture
def pool() -> Iterator[SenderPool]:
    """Two sender threads that merge without a bound."""
    pool = SenderPool(fake_pb_utils, 2, 0, at_once)
    yield pool
    pool.stop(timeout=5)


def stream_of(sender: FakeSender, **request: Any) -> ResponseStream:
    return ResponseStream(
        ResponseEncoder(fake_pb_utils), sender, Outbox(at_once), generation_request(**request)
    )


def deliver(sender: FakeSender, *messages: Message, **request: Any) -> list[Sent]:
    stream = stream_of(sender, **request)
    for message in messages:
        stream.deliver(message)
    return sender.sent


def test_each_delta_is_a_response_and_the_last_is_final() -> None:
    """Deltas go out one by one; only the last carries the FINAL flag."""
    actual = deliver(FakeSender(), Delta((" a",), 1), Delta((" b",), 1, final=True))
    assert [Sent((" a",)), Sent((" b",), final=True)] == actual


def test_every_sequence_has_its_element() -> None:
    """With n > 1 a response has one element for each sequence."""
    assert [Sent(("a", "", "c"), final=True)] == deliver(
        FakeSender(), Delta(("a", "", "c"), 2, final=True)
    )


def test_an_echoed_prompt_stands_before_each_text() -> None:
    """A whole text is the prompt and what was generated, for each sequence."""
    whole = Delta((" upon", " more"), 2, final=True)
    actual = deliver(FakeSender(), whole, stream=False, prefix="Once")
    assert [Sent(("Once upon", "Once more"), final=True)] == actual


def test_the_tutorials_stream_repeats_all_text() -> None:
    """Under the tutorial's names each response is the prompt and all text so far."""
    deltas = [Delta((" upon",), 1), Delta((" a",), 1), Delta((" time",), 1, final=True)]
    actual = deliver(FakeSender(), *deltas, text_from_start=True, prefix="Once", text_output="TEXT")
    expected = [("Once upon",), ("Once upon a",), ("Once upon a time",)]
    assert expected == [sent.texts for sent in actual]
    assert {"TEXT"} == {sent.output for sent in actual}


@pytest.mark.parametrize(
    "error", [RequestError("no"), UnavailableError("no"), GenerationError("no")], ids=repr
)
def test_an_error_is_the_final_response(error: Any) -> None:
    """An error closes the stream with its status and one line of text."""
    actual = deliver(FakeSender(), Delta(("a",), 1), error)
    assert [Sent(("a",)), Sent((), True, error.status, "no", "")] == actual


@pytest.mark.parametrize("first", [Delta(("a",), 1, final=True), RequestError("no")], ids=repr)
@pytest.mark.parametrize("later", [Delta(("b",), 1, final=True), RequestError("late")], ids=repr)
def test_nothing_follows_the_final_response(first: Message, later: Message) -> None:
    """Whatever comes after the stream was closed is not sent."""
    assert 1 == len(deliver(FakeSender(), first, later))


def test_what_is_asked_for_is_sent_beside_the_text() -> None:
    """With return_num_output_tokens each response says what its own text stands for."""
    (counts,) = [output for output in OUTPUTS if output.flag == "return_num_output_tokens"]
    deltas = [
        Delta((" a", ""), 1, extras=DeltaExtras((SequenceExtras([7]), SequenceExtras()), 5)),
        Delta((" b",) * 2, 3, True, DeltaExtras((SequenceExtras([7]), SequenceExtras([8, 9])), 5)),
    ]
    actual = deliver(FakeSender(), *deltas, outputs=(counts,))
    assert [(1, 0), (1, 2)] == [sent.counts for sent in actual]


def test_a_large_last_response_sends_its_flag_apart() -> None:
    """A send with FINAL that fails can't be repeated, so what may not fit goes without it."""
    text = "x" * 20_000
    actual = deliver(FakeSender(), Delta((text,), 1, final=True))
    assert [Sent((text,)), Sent((), True, output="")] == actual


def test_a_large_echoed_prompt_makes_a_response_large() -> None:
    """What counts is what is sent, and not only the generated text."""
    prompt = "p" * 20_000
    actual = deliver(FakeSender(), Delta((" a",), 1, final=True), prefix=prompt)
    assert [Sent((prompt + " a",)), Sent((), True, output="")] == actual


def test_an_undecoded_request_can_fail() -> None:
    """A request that could not be decoded still gets its error and its FINAL flag."""
    sender = FakeSender()
    ResponseStream(ResponseEncoder(fake_pb_utils), sender, Outbox(at_once), None).deliver(
        RequestError("bad")
    )
    assert [Sent((), True, "INVALID_ARG", "bad", "")] == sender.sent


def test_a_closed_stream_does_not_ask_triton() -> None:
    """After the FINAL flag a stream counts as not cancelled, and Triton is not asked."""
    sender = FakeSender()
    sender.cancelled = True
    stream = stream_of(sender)
    assert stream.is_cancelled()
    stream.deliver(Delta(("a",), 1, final=True))
    assert not stream.is_cancelled()
    assert not sender.asked_too_late


def test_triton_is_never_asked_about_a_closed_request() -> None:
    """However closely FINAL and the question meet, the question is never the later one."""
    senders = [FakeSender(slow=0.0005) for _ in range(100)]
    streams = [stream_of(sender) for sender in senders]
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            for stream in streams:
                stream.is_cancelled()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for stream in streams:
        stream.deliver(Delta(("a",), 1))
        stream.deliver(Delta(("b",), 1, final=True))
    done.set()
    for thread in threads:
        thread.join()
    assert [] == [sender for sender in senders if sender.asked_too_late]


def test_a_pool_keeps_each_streams_order(pool: SenderPool) -> None:
    """With several threads and many streams, each stream's text arrives whole and in order."""
    senders = [FakeSender(slow=0.001) for _ in range(10)]
    streams = [pool.open(sender, generation_request()) for sender in senders]
    for number in range(20):
        for stream in streams:
            stream.send(Delta((f"{number} ",), 1, final=number == 19))
    expected = "".join(f"{number} " for number in range(20))
    pool.stop(timeout=5)
    for sender in senders:
        assert expected == "".join(sent.texts[0] for sent in sender.sent)
        assert [True] == [sent.final for sent in sender.sent if sent.final]
        assert sender.sent[-1].final


def test_a_sender_thread_is_woken_once_for_each_turn_of_the_event_loop() -> None:
    """However many tokens a step of the engine brings."""
    turn: list[Callable[[], None]] = []
    outbox = Outbox(turn.append)
    for item in "abc":
        outbox.put(item)
    (flush,) = turn
    flush()
    outbox.put("d")
    turn[1]()
    assert (["a", "b", "c"], ["d"]) == (outbox.queue.get_nowait(), outbox.queue.get_nowait())
    assert outbox.queue.empty()


def test_what_comes_after_the_event_loops_end_is_sent() -> None:
    """A task that the end of the loop cancels has an error to tell."""

    def ended(_: Callable[[], None]) -> None:
        raise RuntimeError("Event loop is closed")

    outbox = Outbox(ended)
    outbox.put("a")
    assert ["a"] == outbox.queue.get_nowait()


def test_a_refusal_does_not_wait_for_the_event_loop() -> None:
    """A request that could not be decoded has no text for which its error should wait."""
    outbox = Outbox(lambda _: None)
    stream = ResponseStream(ResponseEncoder(fake_pb_utils), FakeSender(), outbox, None)
    stream.fail(error := RequestError("bad"))
    assert [(stream, error)] == outbox.queue.get_nowait()


def test_what_piles_up_is_merged(pool: SenderPool) -> None:
    """A slow server gets fewer and longer responses."""
    sender = FakeSender(slow=0.05)
    stream = pool.open(sender, generation_request())
    for number in range(50):
        stream.send(Delta(("x",), 1, final=number == 49))
    pool.stop(timeout=5)
    assert len(sender.sent) < 10
    assert "x" * 50 == "".join(sent.texts[0] for sent in sender.sent)


def test_stopping_sends_what_is_queued() -> None:
    """Nothing that was queued before the stop is lost."""
    pool = SenderPool(fake_pb_utils, 1, 1, at_once)
    sender = FakeSender(slow=0.005)
    stream = pool.open(sender, generation_request())
    for number in range(20):
        stream.send(Delta(("x",), 1, final=number == 19))
    pool.stop(timeout=5)
    assert 20 == len(sender.sent)


def test_stopping_is_bounded() -> None:
    """A send that blocks for ever does not hold up the stop."""
    pool = SenderPool(fake_pb_utils, 2, 0, at_once)
    for _ in range(2):
        pool.open(FakeSender(slow=3), generation_request()).send(Delta(("x",), 1, final=True))
    start = time.monotonic()
    pool.stop(timeout=0.2)
    assert time.monotonic() - start < 2


def test_a_response_that_cannot_be_sent_becomes_an_error(
    pool: SenderPool, caplog: pytest.LogCaptureFixture
) -> None:
    """When a response fails on the way, the client gets an error and the log says which."""
    sender = FakeSender([RuntimeError("no shared memory")])
    pool.open(sender, generation_request()).send(Delta(("a",), 1))
    pool.stop(timeout=5)
    line = "response not sent: no shared memory"
    assert [Sent((), True, "INTERNAL", line, "")] == sender.sent
    assert [("ERROR", f"r-1: {line}")] == logged(caplog)


def test_a_large_last_response_that_cannot_be_sent_becomes_an_error(pool: SenderPool) -> None:
    """Where shared memory is full, an answer that is sent in one piece still ends in an error."""
    sender = FakeSender([RuntimeError("no shared memory")])
    pool.open(sender, generation_request()).send(Delta(("x" * 20_000,), 1, final=True))
    pool.stop(timeout=5)
    (sent,) = sender.sent
    assert (True, "INTERNAL") == (sent.final, sent.status)


def test_deltas_that_do_not_merge_do_not_end_the_thread(pool: SenderPool) -> None:
    """A mistake of ours in one stream costs neither its text nor the other streams'."""
    sender = FakeSender(slow=0.2)
    stream = pool.open(sender, generation_request())
    stream.send(Delta(("first",), 1))
    stream.send(Delta(("a",), 1))
    stream.send(Delta(("b", "c"), 2, final=True))
    pool.stop(timeout=5)
    assert ["first", "a", "b"] == [sent.texts[0] for sent in sender.sent]
    assert sender.closed.is_set()


def test_text_that_is_no_unicode_becomes_an_error(pool: SenderPool) -> None:
    """A text that cannot be encoded fails its own request, with a FINAL flag."""
    sender, other = FakeSender(), FakeSender()
    pool.open(sender, generation_request()).send(Delta(("\ud800",), 1, final=True))
    pool.open(other, generation_request()).send(Delta(("fine",), 1, final=True))
    pool.stop(timeout=5)
    (sent,) = sender.sent
    assert (True, "INTERNAL") == (sent.final, sent.status)
    assert [Sent(("fine",), final=True)] == other.sent


def test_a_broken_sender_does_not_end_its_thread(caplog: pytest.LogCaptureFixture) -> None:
    """When even the error cannot be sent, the thread goes on with the other streams."""
    pool = SenderPool(fake_pb_utils, 1, 0, at_once)
    broken, good = FakeSender([RuntimeError("gone")] * 2), FakeSender()
    pool.open(broken, generation_request()).send(Delta(("a",), 1))
    pool.open(good, generation_request()).send(Delta(("b",), 1, final=True))
    pool.stop(timeout=5)
    assert [] == broken.sent
    assert [Sent(("b",), final=True)] == good.sent
    assert 2 == len(caplog.messages)


class UntellableError(RequestError):
    """An error whose text Triton refuses."""

    def __str__(self) -> str:
        return "\ud83d"


def test_an_error_that_cannot_be_told_is_replaced_by_a_plain_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without its FINAL flag the request would stay, and no unload would end."""
    pool = SenderPool(fake_pb_utils, 1, 0, at_once)
    sender = FakeSender()
    pool.open(sender).fail(UntellableError("x"))
    pool.stop(timeout=5)
    expected = Sent((), True, "INTERNAL", "the error cannot be sent, see the log", "")
    assert [expected] == sender.sent
    assert (1, {"client_error": 1}) == (pool.traffic[0].responses, counted(pool))
    assert "(undecoded): response not sent: 'utf-8' codec" in caplog.messages[0]


def test_where_no_error_can_be_made_the_flag_goes_out_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever Triton refuses, the request ends and is counted."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError("no errors today")

    refuse.INTERNAL = refuse.INVALID_ARG = "X"  # type: ignore[attr-defined]
    broken = SimpleNamespace(**{**vars(fake_pb_utils), "TritonError": refuse})
    pool = SenderPool(broken, 1, 0, at_once)
    sender = FakeSender()
    pool.open(sender, generation_request()).fail(RequestError("x"))
    pool.stop(timeout=5)
    assert [Sent((), True, output="")] == sender.sent
    assert {"client_error": 1} == counted(pool)


def counted(pool: SenderPool) -> dict[str, int]:
    """Return the outcomes that the first thread has counted."""
    return {name: count for name, count in pool.traffic[0].outcomes.items() if count}


deltas = st.builds(
    Delta,
    texts=st.tuples(st.text(max_size=3), st.text(max_size=3)),
    num_tokens=st.integers(0, 6),
)
bounds = st.none() | st.integers(1, 12)


@st.composite
def queued(draw: st.DrawFn) -> list[tuple[int, Message]]:
    """What may stand in a queue: (stream, message), each stream closed at most once, at its end."""
    order = draw(st.lists(st.integers(0, 3), max_size=30))
    last = {stream: at for at, stream in enumerate(order)}
    items: list[tuple[int, Message]] = []
    for at, stream in enumerate(order):
        message: Message = draw(deltas)
        if at == last[stream] and draw(st.booleans()):
            assert isinstance(message, Delta)
            final = Delta(message.texts, message.num_tokens, final=True)
            message = final if draw(st.booleans()) else RequestError("no")
        items.append((stream, message))
    return items


def merged_by_stream(
    items: list[tuple[int, Message]], bound: int | None
) -> dict[int, tuple[list[Message], list[Message]]]:
    """Return each stream's messages before and after the merge."""
    streams = [stream_of(FakeSender()) for _ in range(4)]
    after = merge([(streams[number], message) for number, message in items], bound)
    return {
        number: (
            [message for n, message in items if n == number],
            [message for s, message in after if s is stream],
        )
        for number, stream in enumerate(streams)
    }


def texts_of(messages: list[Message]) -> tuple[str, ...]:
    parts = [message.texts for message in messages if isinstance(message, Delta)]
    return tuple("".join(part[i] for part in parts) for i in (0, 1))


@given(queued(), bounds)
def test_merging_loses_nothing(items: list[tuple[int, Message]], bound: int | None) -> None:
    """Each stream keeps its texts in order and its tokens, whatever else is in the queue."""
    for before, after in merged_by_stream(items, bound).values():
        assert texts_of(before) == texts_of(after)
        tokens = [sum(m.num_tokens for m in ms if isinstance(m, Delta)) for ms in (before, after)]
        assert tokens[0] == tokens[1]


@given(queued(), bounds)
def test_merging_keeps_the_end_last(items: list[tuple[int, Message]], bound: int | None) -> None:
    """A stream that is closed before the merge is closed once after it, by its last message."""
    for before, after in merged_by_stream(items, bound).values():
        ends = [
            [not isinstance(m, Delta) or m.final for m in messages] for messages in (before, after)
        ]
        assert sum(ends[0]) == sum(ends[1])
        assert True not in ends[1][:-1]
        errors = [[m for m in ms if not isinstance(m, Delta)] for ms in (before, after)]
        assert errors[0] == errors[1]


@given(queued(), bounds)
def test_merging_respects_the_bound(items: list[tuple[int, Message]], bound: int | None) -> None:
    """No merged delta exceeds the bound unless it came so; neighbours that fit are merged."""
    for before, after in merged_by_stream(items, bound).values():
        largest = max((m.num_tokens for m in before if isinstance(m, Delta)), default=0)
        sizes = [m.num_tokens for m in after if isinstance(m, Delta)]
        if bound is None:
            assert len(sizes) <= 1
        else:
            assert all(size <= max(bound, largest) for size in sizes)
            pairs = pairwise(sizes)
            assert all(first + second > bound for first, second in pairs)


def test_merging_does_not_reorder_streams_that_need_no_merge() -> None:
    """Messages of different streams stay as they came."""
    a, b = stream_of(FakeSender()), stream_of(FakeSender())
    items: list[tuple[ResponseStream, Message]] = [
        (a, Delta(("1",), 1)),
        (b, Delta(("2",), 1)),
    ]
    assert items == merge(items, None)
    assert [a, b] == [stream for stream, _ in groupby(s for s, _ in merge(items, None))]


def test_a_front_end_at_its_limit_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If it merges more than it sends apart; with what to change. A short burst is no reason."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    traffic = [Traffic(), Traffic()]
    warning = MergeWarning("vllm", traffic)
    for responses, merged in [(5000, 100), (900, 9000), (3000, 6000), (3000, 6000)]:
        now += 10
        traffic[0].responses += responses
        traffic[1].merged_deltas += merged
        warning.check()
        warning.check()
    ((level, line),) = logged(caplog)
    assert "WARNING" == level
    assert line.startswith("vllm: a response holds 3.0 outputs of the engine")


def test_what_lags_for_another_reason_is_no_reason_for_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor later, when that reason is gone."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    traffic = Traffic()
    warning = MergeWarning("vllm", [traffic])
    for number in range(60):
        now += 1
        traffic.responses += 3000
        traffic.merged_deltas += 6000 if number < 30 else 0
        warning.postpone() if number < 30 else warning.check()
    assert [] == caplog.messages
