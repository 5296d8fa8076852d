"""What this package logs goes to Triton's log, and nothing else changes for it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from logging.handlers import QueueHandler
from queue import SimpleQueue

import pytest

from tests.unit.fakes import FakeLogger
from triton_vllm.log import StartupTimer, TritonHandler, log_to_triton

ours = logging.getLogger("triton_vllm.limits.some_module")


@pytest.fixture
def triton() -> Iterator[FakeLogger]:
    """Triton's log, where this package's lines go meanwhile."""
    package = logging.getLogger("triton_vllm")
    before = package.handlers, package.propagate, package.level
    triton = FakeLogger()
    log_to_triton(triton)
    yield triton
    package.handlers, package.propagate, package.level = before


def test_each_level_is_that_of_triton(triton: FakeLogger) -> None:
    """A line keeps its text; what is meant for debugging is left out."""
    ours.debug("left out")
    ours.info("100 % loaded")
    ours.warning("a warning")
    ours.error("an error")
    ours.critical("worse")
    expected = [("info", "100 % loaded"), ("warn", "a warning")]
    assert [*expected, ("error", "an error"), ("error", "worse")] == triton.lines


def test_a_second_load_does_not_double_the_lines(triton: FakeLogger) -> None:
    """The last log that was given gets them all."""
    other = FakeLogger()
    log_to_triton(other)
    ours.info("once")
    assert ([], [("info", "once")]) == (triton.lines, other.lines)


def test_other_libraries_keep_their_logs(triton: FakeLogger) -> None:
    """Their lines do not come to Triton, and ours do not come to the root's handlers."""
    at_the_root: SimpleQueue[logging.LogRecord] = SimpleQueue()
    handler = QueueHandler(at_the_root)
    logging.getLogger().addHandler(handler)
    logging.getLogger("vllm.engine").error("theirs")
    ours.error("ours")
    logging.getLogger().removeHandler(handler)
    assert "theirs" == at_the_root.get_nowait().getMessage()
    assert at_the_root.empty()
    assert [("error", "ours")] == triton.lines


def test_text_that_utf8_cannot_express_is_logged() -> None:
    """Triton's log takes UTF-8 only; the rest of the line must not be lost."""
    triton = FakeLogger()
    record = logging.makeLogRecord({"levelno": logging.ERROR, "msg": "no adapter \udc80"})
    TritonHandler(triton).handle(record)
    assert [("error", "no adapter \\udc80")] == triton.lines


def test_a_log_that_fails_harms_nobody(
    triton: FakeLogger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever logs goes on; standard error says what was wrong."""

    def fail(message: str) -> None:
        raise RuntimeError("no shared memory")

    monkeypatch.setattr(triton, "log_error", fail)
    ours.error("a line")
    assert "no shared memory" in capsys.readouterr().err


def test_a_start_is_timed(caplog: pytest.LogCaptureFixture) -> None:
    """Each step, and the whole."""
    timer = StartupTimer("vllm")
    timer.lap("vLLM imported")
    timer.total("ready")
    assert ["vllm: vLLM imported (0.0 s)", "vllm: ready (0.0 s)"] == caplog.messages
