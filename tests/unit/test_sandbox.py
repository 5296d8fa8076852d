"""The process that does jobs under a limit: it starts, is watched, and dies."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
from pathlib import Path

import pytest

from tests.unit.fake_compiler import compile_as_told, die_at_once, regex
from tests.unit.fakes import logged
from triton_vllm.errors import RequestError, UnavailableError
from triton_vllm.limits import grammar_compiler
from triton_vllm.limits import sandbox as sandbox_module
from triton_vllm.limits.grammar import GrammarSandbox

pytestmark = pytest.mark.timeout(120)


def test_a_machine_that_stands_still_proves_nothing(sandbox: GrammarSandbox) -> None:
    """What counts is the compiler's processor time."""
    asyncio.run(sandbox.check(regex("sleep 2.5")))


def test_a_machine_that_stands_still_for_long_is_no_result(
    sandbox: GrammarSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client may try again, and so it does."""
    monkeypatch.setattr(sandbox_module, "_PATIENCE", 1)
    text = f"first {tmp_path / 'once'} sleep 60"

    async def main() -> None:
        with pytest.raises(UnavailableError, match="the machine is too busy"):
            await sandbox.check(regex(text))
        await sandbox.check(regex(text))

    asyncio.run(main())


def test_a_process_that_cannot_be_started_leaves_nothing(
    sandbox: GrammarSandbox, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client may try again, and the next grammar does."""

    async def main() -> None:
        await sandbox.check(regex("sleep 0"))
        with pytest.raises(RequestError):
            await sandbox.check(regex("grow"))
        before = descriptors()
        with monkeypatch.context() as patch:
            patch.setattr("multiprocessing.util.spawnv_passfds", no_process)
            with pytest.raises(UnavailableError, match="no sandbox process"):
                await sandbox.check(regex("sleep 0.1"))
        assert before == descriptors()
        await sandbox.check(regex("sleep 0.1"))

    asyncio.run(main())
    assert [("WARNING", True)] == [(level, "uncompiled" in line) for level, line in logged(caplog)]


def descriptors() -> list[str]:
    gc.collect()  # multiprocessing closes some with its objects
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def no_process(*_: object) -> int:
    raise BlockingIOError(11, "Resource temporarily unavailable")


def test_a_process_that_dies_while_it_starts_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    """No grammar is to blame, and none goes to the engine uncompiled."""
    monkeypatch.setattr(grammar_compiler, "prepare", die_at_once)
    sandbox = GrammarSandbox(1.0, lambda: "{}")
    with pytest.raises(UnavailableError, match="no sandbox process"):
        asyncio.run(sandbox.check(regex("a+")))
    sandbox.stop()


def test_a_grammar_is_not_blamed_for_a_process_that_was_killed_before(
    sandbox: GrammarSandbox,
) -> None:
    """As by the kernel, when memory is short."""

    async def main() -> None:
        await sandbox.check(regex("sleep 0"))
        (process,) = multiprocessing.active_children()
        process.kill()
        process.join()
        await sandbox.check(regex("sleep 0.01"))

    asyncio.run(main())


def test_the_tokenizer_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for each process."""
    monkeypatch.setattr(grammar_compiler, "prepare", compile_as_told)
    reads: list[str] = []

    def read() -> str:
        reads.append("read")
        return "{}"

    sandbox = GrammarSandbox(1.0, read)

    async def main() -> None:
        for text in ("grow", "die 1"):
            with pytest.raises(RequestError):
                await sandbox.check(regex(text))

    asyncio.run(main())
    sandbox.stop()
    assert reads == ["read"]


def test_with_an_unknown_tokenizer_grammars_pass_uncompiled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log says so once, the engine decides."""

    def unknown() -> str:
        raise ValueError("no such tokenizer")

    sandbox = GrammarSandbox(1.0, unknown)
    for text in ("a+", "b+"):
        asyncio.run(sandbox.check(regex(text)))
    sandbox.stop()
    assert [
        ("WARNING", "grammars go to the engine without a sandbox: no such tokenizer")
    ] == logged(caplog)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[01:34:46] /project/cpp/regex_converter.cc:83: Unclosed '['"), ""),
        (RuntimeError("Lark error at line 1, column 6: no"), ""),
        (UnicodeEncodeError("utf-8", "\udc00", 0, 1, "surrogates not allowed"), ""),
        (RuntimeError("std::bad_alloc"), "takes too much memory"),
        (MemoryError(), "takes too much memory"),
        (RuntimeError("Resource temporarily unavailable"), "Resource"),
        (ValueError("vector::reserve"), "vector::reserve"),
    ],
)
def test_only_a_refusal_of_xgrammars_is_left_to_vllm(error: Exception, expected: str) -> None:
    """What fails in another way would do so in the engine, without a limit."""
    failure = grammar_compiler.failure_of(error)
    assert failure.startswith(expected)
    assert bool(expected) == bool(failure)
