"""Grammars that take too long, compiled in a process that is killed for it."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.unit.fake_compiler import cancel, regex
from triton_vllm.errors import RequestError, UnavailableError
from triton_vllm.limits import grammar as grammar
from triton_vllm.limits.grammar import (
    MAX_CHARACTERS,
    MAX_JOBS,
    GrammarSandbox,
    NoGrammarSandbox,
    grammar_of,
    grammar_sandbox,
)

pytestmark = pytest.mark.timeout(120)


async def begun(sandbox: GrammarSandbox, text: str) -> asyncio.Task[None]:
    """Ask about a grammar, and return when its trial has had the time to begin."""
    await sandbox.check(regex("sleep 0"))  # the process has started
    task = asyncio.create_task(sandbox.check(regex(text)))
    await asyncio.sleep(0.1)
    return task


def test_what_compiles_in_time_passes(sandbox: GrammarSandbox) -> None:
    """And is remembered: the second time costs nothing."""

    async def main() -> float:
        await sandbox.check(regex("sleep 0.2"))
        since = time.monotonic()
        await sandbox.check(regex("sleep 0.2"))
        return time.monotonic() - since

    assert asyncio.run(main()) < 0.2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("work 60", 'structured_outputs: "regex": cannot be compiled: takes longer than 1 s'),
        ("grow", "takes too much memory"),
        ("die 7", "exit code 7"),
    ],
)
def test_what_does_not_is_refused(
    sandbox: GrammarSandbox, text: str, expected: str, tmp_path: Path
) -> None:
    """Each time, without another job, which it would pass; the next one has a new process."""
    text = f"first {tmp_path / 'once'} {text}"

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(RequestError, match=expected):
                await sandbox.check(regex(text))
        await sandbox.check(regex("work 0.01"))

    asyncio.run(main())


def test_a_refusal_expires(
    sandbox: GrammarSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However often it is asked for: the machine may have been at fault, as with its memory."""
    monkeypatch.setattr(grammar, "_EXPIRES_SECONDS", 2.0)
    text = f"first {tmp_path / 'once'} grow"

    async def main() -> int:
        refused = 0
        while True:
            try:
                await sandbox.check(regex(text))
            except RequestError:
                refused += 1
                await asyncio.sleep(0.1)
            else:
                return refused

    assert asyncio.run(main()) > 1


def test_a_client_that_leaves_does_not_mix_up_the_answers(sandbox: GrammarSandbox) -> None:
    """Its job goes on, and the next grammar gets its own result."""

    async def main() -> None:
        await cancel(await begun(sandbox, "sleep 0.5"))
        with pytest.raises(RequestError, match="memory"):
            await sandbox.check(regex("grow"))
        await sandbox.check(regex("sleep 0.5"))

    asyncio.run(main())


def test_a_job_without_a_client_is_dropped(sandbox: GrammarSandbox, tmp_path: Path) -> None:
    """Where another client waits for the same grammar, it is compiled."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"

    async def main() -> None:
        running = await begun(sandbox, "sleep 1")
        texts = [f"first {path} sleep 0" for path in (alone, shared, shared)]
        tasks = [asyncio.create_task(sandbox.check(regex(text))) for text in texts]
        await asyncio.sleep(0.1)
        await cancel(*tasks[:2])
        await tasks[2]
        await sandbox.check(regex("sleep 0.01"))
        await running

    asyncio.run(main())
    assert shared.exists()
    assert not alone.exists()


def test_no_more_than_so_many_wait(sandbox: GrammarSandbox, tmp_path: Path) -> None:
    """Of different grammars: all clients of one make one job. Those that leave make room."""

    async def main() -> None:
        running = await begun(sandbox, "sleep 2")
        text = f"first {tmp_path / 'once'} sleep 0.01"
        same = [asyncio.create_task(sandbox.check(regex(text))) for _ in range(100)]
        others = [
            asyncio.create_task(sandbox.check(regex(f"sleep 0.0{number:03}")))
            for number in range(MAX_JOBS - 2)
        ]
        await asyncio.sleep(0.1)
        with pytest.raises(UnavailableError, match=f"the limit of this front end is {MAX_JOBS}"):
            await sandbox.check(regex("sleep 0.02"))
        await cancel(others[0])
        await sandbox.check(regex("sleep 0.02"))
        await asyncio.gather(running, *same, *others[1:])

    asyncio.run(main())
    assert (tmp_path / "once").read_text() == "tried "


def test_the_end_is_final(sandbox: GrammarSandbox) -> None:
    """It ends the job under way, and those that wait; none begins any more."""

    async def main() -> None:
        tasks = [await begun(sandbox, "sleep 60")]
        tasks.append(asyncio.create_task(sandbox.check(regex("sleep 0.01"))))
        await asyncio.sleep(0.1)
        stopping = threading.Thread(target=sandbox.stop)
        stopping.start()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert [UnavailableError, UnavailableError] == [type(end) for end in ends]
        stopping.join()
        with pytest.raises(UnavailableError):
            await sandbox.check(regex("sleep 0.02"))

    asyncio.run(main())


def test_the_grammar_is_read() -> None:
    """Of the kinds that vLLM knows; a schema may be an object; choices are a grammar."""
    kinds = SimpleNamespace(json={"type": "null"}, regex=None, choice=None)
    assert ("json", '{"type": "null"}') == grammar_of(kinds)
    assert ("regex", "a+") == grammar_of(regex("a+"))
    choices = SimpleNamespace(choice=["a", 'b"'])
    assert ("grammar", 'root ::= "a" | "b\\""') == grammar_of(choices)


@pytest.mark.parametrize("seconds", [0, 5])
def test_a_long_text_is_refused_unread(seconds: float) -> None:
    """With or without a limit of time."""
    sandbox = grammar_sandbox(seconds, lambda: "{}")
    expected = f"{MAX_CHARACTERS + 1} characters, allowed: {MAX_CHARACTERS}"
    with pytest.raises(RequestError, match=expected):
        asyncio.run(sandbox.check(regex("a" * (MAX_CHARACTERS + 1))))


def test_no_limit_is_no_process() -> None:
    """0 turns it off, and a backend that needs none has none."""
    assert isinstance(grammar_sandbox(0, lambda: ""), NoGrammarSandbox)
    assert isinstance(grammar_sandbox(5, None), NoGrammarSandbox)
