"""Finished answers are compared with the client's schema, in a process of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.fakes import generation_request, logged
from triton_vllm.limits import answer_check, schema_check
from triton_vllm.limits.answer_check import AnswerCheck
from triton_vllm.limits.schema_check import Answer, violations
from triton_vllm.openai_api.answer_log import AnswerLog
from triton_vllm.openai_api.exchange import Message
from triton_vllm.protocol.delta import Delta, DeltaExtras, SequenceExtras
from triton_vllm.protocol.outputs import SCHEMA_ERRORS
from triton_vllm.protocol.requests import ChatPrompt, Generation
from triton_vllm.protocol.schema_errors import checked

pytestmark = pytest.mark.timeout(60)

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 18}, "born": {"format": "date-time"}},
    "required": ["age"],
}
YOUNG = {"path": "/age", "keyword": "minimum", "message": "3 is less than the minimum of 18"}


@pytest.fixture
def check() -> Iterator[AnswerCheck]:
    check = AnswerCheck()
    yield check
    check.stop()


def found(text: str, schema: Any = SCHEMA, **how: Any) -> list[tuple[str, str]]:
    """Return path and keyword of each violation."""
    wrong = violations(Answer(json.dumps(schema), text, **how))
    return [(each["path"], each["keyword"]) for each in wrong]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"age": 20}', []),
        ('{"age": 3}', [("/age", "minimum")]),
        ("{}", [("", "required")]),
        ('{"age": 20, "born": "once"}', [("/born", "format")]),
        ('{"age": 20, "born": "2026-11-28T10:00:00Z"}', []),
        ('{"age": ', [("", "not_json")]),
        ('{"age": NaN}', [("", "not_json")]),
    ],
)
def test_violations(text: str, expected: list[tuple[str, str]]) -> None:
    """Each has its place and keyword."""
    assert expected == found(text)


def test_a_cut_text_is_told_from_nonsense() -> None:
    """It could have become JSON; one that is complete is compared as ever."""
    assert [("", "truncated")] == found('{"age": ', truncated=True)
    assert [("/age", "minimum")] == found('{"age": 3}', truncated=True)


@pytest.mark.parametrize("schema", [{"$ref": "http://example.org/schema"}, {"type": "nosuch"}])
def test_what_cannot_be_compared_is_unchecked(schema: Any) -> None:
    """Nothing is fetched for a reference, and a wrong schema is no violation of the text."""
    assert [("", "unchecked")] == found("1", schema)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("time", "10:00:00+01:00", "10:00:00"),
        ("duration", "P1Y2DT3H", "P"),
        ("hostname", "a-b.example.org", "-a.example.org"),
        ("uri", "https://example.org/a?b", "/a"),
        ("uri-reference", "/a", "/a b"),
        ("json-pointer", "/a~1b/0", "a/~2"),
    ],
)
def test_formats_that_jsonschema_leaves_to_other_packages(
    name: str, right: str, wrong: str
) -> None:
    """They are checked in every environment."""
    assert [] == found(json.dumps(right), {"format": name})
    assert [("", "format")] == found(json.dumps(wrong), {"format": name})


def test_violations_are_counted_by_keyword(check: AnswerCheck) -> None:
    """Of all answers."""

    async def main() -> None:
        for text in ('{"age": 3}', "{", "{}", '{"age": 20}'):
            await check.check(Answer(json.dumps(SCHEMA), text))

    asyncio.run(main())
    assert {"minimum": 1, "not_json": 1, "required": 1} == check.found


def test_a_check_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is unchecked, and the next one has a new process."""
    monkeypatch.setattr(schema_check, "prepare", busy_at_first)
    check = AnswerCheck(seconds=0.1)

    async def main() -> list[list[Any]]:
        return [await check.check(Answer("{}", text)) for text in ("busy", "1")]

    (stopped, next_one) = asyncio.run(main())
    check.stop()
    assert ["unchecked"] == [each["keyword"] for each in stopped]
    assert "takes longer than 0.1 s" in stopped[0]["message"]
    assert [] == next_one


def test_an_answer_that_would_wait_too_long_is_unchecked(
    check: AnswerCheck, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checking must not fall behind generating."""
    monkeypatch.setattr(answer_check, "MAX_WAITING", 0)
    (only,) = asyncio.run(check.check(Answer("{}", "1")))
    assert ("unchecked", "the check waits for 0 others") == (only["keyword"], only["message"])


def busy_at_first() -> Any:
    def do(answer: Answer) -> list[Any]:
        while answer.text == "busy":
            pass
        return []

    return do


def read(generation: Generation) -> list[Delta]:
    async def main() -> list[Delta]:
        return [generation.read(output) async for output in generation.outputs(None)]

    return asyncio.run(main())


def generation_of(*deltas: Delta) -> Generation:
    async def outputs(_: Any) -> AsyncGenerator[Delta, None]:
        for delta in deltas:
            yield delta

    return Generation(outputs, lambda delta: delta)


def extras(*sequences: SequenceExtras) -> DeltaExtras:
    return DeltaExtras(sequences, 1)


def request(**changes: Any) -> Any:
    params = SimpleNamespace(structured_outputs=SimpleNamespace(json=SCHEMA), n=2)
    return generation_request(
        **{"sampling_params": params, "outputs": (SCHEMA_ERRORS,), "stream": True, **changes}
    )


def test_a_stream_is_checked_when_it_is_complete(check: AnswerCheck) -> None:
    """Each sequence has its own list, in the final response."""
    deltas = read(
        checked(
            generation_of(
                Delta(('{"age"', '{"ag'), 2, False, extras(SequenceExtras(), SequenceExtras())),
                Delta(
                    (": 3}", ""),
                    1,
                    True,
                    extras(
                        SequenceExtras(finish_reason="stop"),
                        SequenceExtras(finish_reason="length"),
                    ),
                ),
            ),
            request(),
            check,
        )
    )
    shown = [SCHEMA_ERRORS.encode(d.extras).tolist() for d in deltas if d.extras]
    assert [b"null", b"null"] == shown[0]
    first, second = map(json.loads, shown[1])
    assert [YOUNG] == first
    assert ["truncated"] == [each["keyword"] for each in second]


def test_arguments_of_strict_tools_are_checked(check: AnswerCheck) -> None:
    """A stream's deltas of a call are joined; tools that are not strict are left alone."""
    tools = [
        {"type": "function", "function": {"name": name, "parameters": SCHEMA, "strict": strict}}
        for name, strict in (("strict", True), ("lax", False))
    ]

    def call(index: int, name: str, arguments: str) -> dict[str, Any]:
        return {"index": index, "function": {"name": name, "arguments": arguments}}

    deltas = read(
        checked(
            generation_of(
                Delta(("",), 1, False, extras(SequenceExtras(tool_calls=[call(0, "lax", "{}")]))),
                Delta(("",), 1, False, extras(SequenceExtras(tool_calls=[call(1, "strict", "")]))),
                Delta(
                    ("",), 1, True, extras(SequenceExtras(tool_calls=[call(1, "", '{"age": 3}')]))
                ),
            ),
            request(
                prompt=ChatPrompt([], {"tools": tools}),
                sampling_params=SimpleNamespace(structured_outputs=None, n=1),
            ),
            check,
        )
    )
    last = deltas[-1].extras
    assert last is not None
    assert [{**YOUNG, "path": "/tool_calls/1/arguments/age"}] == last.sequences[0].schema_errors


def test_without_a_schema_there_is_nothing_to_say(check: AnswerCheck) -> None:
    """The output is null, and no process is started."""
    (delta,) = read(
        checked(
            generation_of(Delta(("text",), 1, True, extras(SequenceExtras()))),
            request(sampling_params=SimpleNamespace(structured_outputs=None, n=1)),
            check,
        )
    )
    assert delta.extras is not None
    assert [b"null"] == SCHEMA_ERRORS.encode(delta.extras).tolist()


CHAT = {"id": "chat-1", "choices": [{"index": 0, "message": {"content": '{"age": 3}'}}]}
EVENTS = [
    {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": '{"age"'}}]},
    {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": ": 3}"}, "finish_reason": "x"}]},
]
STREAM = "".join(f"data: {json.dumps(event)}\n\n" for event in EVENTS) + "data: [DONE]\n\n"
RESPONSE = {
    "id": "chat-1",
    "status": "completed",
    "output": [{"type": "message", "content": [{"text": '{"age": 3}'}]}],
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}


@pytest.mark.parametrize(
    ("path", "asked", "answered"),
    [
        ("/v1/chat/completions", {"response_format": FORMAT}, json.dumps(CHAT)),
        ("/v1/chat/completions", {"response_format": FORMAT, "stream": True}, STREAM),
        ("/v1/chat/completions", {"structured_outputs": {"json": SCHEMA}}, json.dumps(CHAT)),
        (
            "/v1/responses",
            {"text": {"format": {"type": "json_schema", "name": "a", "schema": SCHEMA}}},
            json.dumps(RESPONSE),
        ),
    ],
    ids=["chat", "streamed", "vLLM's name", "responses"],
)
def test_the_openai_port_logs_and_counts(
    check: AnswerCheck, caplog: pytest.LogCaptureFixture, path: str, asked: Any, answered: str
) -> None:
    """The log has places and keywords, and nothing of the text."""
    passed = serve(AnswerLog(app_that_answers(answered), check), path, json.dumps(asked))
    assert answered.encode() == passed
    line = "chat-1: the answer violates its schema: minimum at choice 0 /age"
    assert [("WARNING", line)] == logged(caplog)
    assert {"minimum": 1} == check.found


def test_other_requests_of_the_openai_port_pass(
    check: AnswerCheck, caplog: pytest.LogCaptureFixture
) -> None:
    """What has no schema is not looked at."""
    app = AnswerLog(app_that_answers(json.dumps(CHAT)), check)
    assert json.dumps(CHAT).encode() == serve(app, "/v1/chat/completions", '{"messages": []}')
    assert [] == logged(caplog)


def app_that_answers(body: str) -> Any:
    async def app(scope: Message, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        half = len(body) // 2
        await send({"type": "http.response.body", "body": body[:half].encode(), "more_body": True})
        await send({"type": "http.response.body", "body": body[half:].encode()})

    return app


def serve(app: AnswerLog, path: str, asked: str) -> bytes:
    passed = bytearray()

    async def receive() -> Message:
        return {"type": "http.request", "body": asked.encode()}

    async def send(message: Message) -> None:
        passed.extend(message.get("body", b""))

    async def main() -> None:
        await app({"type": "http", "path": path}, receive, send)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    asyncio.run(main())
    return bytes(passed)
