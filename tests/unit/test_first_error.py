"""The first error of a start-up, as a child process writes it down."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from triton_vllm import child_process
from triton_vllm.process import FirstError


@pytest.fixture(autouse=True)
def records() -> Iterator[None]:
    """Put the factory of log records back."""
    factory = logging.getLogRecordFactory()
    child_process.write_down_first_error()
    yield
    logging.setLogRecordFactory(factory)


def log(error: Exception) -> None:
    """Log an exception as vLLM's processes do."""
    try:
        raise error
    except Exception:
        logging.getLogger("some").exception("EngineCore failed to start.")


def test_the_first_error_is_told_in_one_line() -> None:
    """A worker's error comes first; what follows from it is not told."""
    with FirstError() as first:
        logging.getLogger("some").error("no exception")
        log(ValueError("No room\n  for the KV cache"))
        log(RuntimeError("worker failed"))
        assert "ValueError: No room for the KV cache" == first.instead_of(RuntimeError("failed"))


def test_without_one_the_parents_error_is_told() -> None:
    """As when a process was killed."""
    with FirstError() as first:
        assert "RuntimeError: core failed" == first.instead_of(RuntimeError("core failed"))


def test_after_the_start_nothing_is_written() -> None:
    """Errors of requests are nobody's first error, and logging them is safe."""
    with FirstError():
        path = os.environ[child_process.FIRST_ERROR]
    os.environ[child_process.FIRST_ERROR] = path
    try:
        log(ValueError("later"))
    finally:
        del os.environ[child_process.FIRST_ERROR]
    assert not os.path.exists(path)  # noqa: PTH110
    log(ValueError("later still"))
