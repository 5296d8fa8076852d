"""The errors of an engine, as its processes write them down and the front end reads them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from triton_vllm.topology import child_process
from triton_vllm.topology.stub_process import EngineErrors


@pytest.fixture(autouse=True)
def records(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the factory of log records and the environment back."""
    factory = logging.getLogRecordFactory()
    monkeypatch.setenv(child_process.ERRORS, "")
    child_process.write_down_errors()
    yield
    logging.setLogRecordFactory(factory)


@pytest.fixture
def errors(tmp_path: Path) -> EngineErrors:
    """Those of an engine that is about to start."""
    errors = EngineErrors(tmp_path)
    errors.clear()
    return errors


def log(error: Exception) -> None:
    """Log an exception as vLLM's processes do."""
    try:
        raise error
    except Exception:
        logging.getLogger("some").exception("EngineCore failed to start.")


def test_the_first_error_is_told_in_one_line(errors: EngineErrors) -> None:
    """A worker's error comes first; what follows from it is not told."""
    logging.getLogger("some").error("no exception")
    log(ValueError("No room\n  for the KV cache"))
    log(RuntimeError("worker failed"))
    assert "ValueError: No room for the KV cache" == errors.first()


def test_without_one_nothing_is_told(errors: EngineErrors) -> None:
    """As when a process was killed."""
    assert "" == errors.first()


def test_an_error_of_long_ago_is_not_the_cause(
    errors: EngineErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that failed an hour before the engine died has nothing to do with it."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    log(ValueError("one request"))
    monkeypatch.setattr(time, "time", lambda: now)
    log(RuntimeError("CUDA error: an illegal memory access was encountered"))
    log(RuntimeError("Worker failed"))
    assert "RuntimeError: CUDA error: an illegal memory access was encountered" == errors.first(30)


def test_another_engine_begins_anew(errors: EngineErrors) -> None:
    """What the last one died of did not keep this one from starting."""
    log(ValueError("the last one"))
    errors.clear()
    assert "" == errors.first()


def test_the_file_does_not_grow_for_ever(errors: EngineErrors, tmp_path: Path) -> None:
    """Of many errors the newer ones are there."""
    for number in range(3000):
        log(ValueError(f"{number} " + "x" * 2000))
    assert (tmp_path / "errors.jsonl").stat().st_size < 1_100_000
    log(ValueError("the last one"))
    assert "the last one" in (tmp_path / "errors.jsonl").read_text()


def test_a_line_that_is_none_hides_no_other(errors: EngineErrors, tmp_path: Path) -> None:
    """Several processes write, and one may die while it does."""
    (tmp_path / "errors.jsonl").write_bytes(b'5\n[1, \n["x", "y"]\n\xff\n')
    log(ValueError("No room"))
    assert "ValueError: No room" == errors.first(30)


def test_no_engine_fails_for_want_of_the_file(errors: EngineErrors, tmp_path: Path) -> None:
    """A cleaner of temporary files may have taken it."""
    (tmp_path / "errors.jsonl").unlink()
    tmp_path.rmdir()
    errors.clear()
    assert "" == errors.first()


def test_without_a_place_for_it_logging_goes_on(errors: EngineErrors, tmp_path: Path) -> None:
    """The model is being unloaded, say."""
    (tmp_path / "errors.jsonl").unlink()
    log(ValueError("later"))
    assert [] == list(tmp_path.iterdir())
    del os.environ[child_process.ERRORS]
    log(ValueError("later still"))
    assert "" == errors.first()
