"""The pieces of client.py that need no server."""

from __future__ import annotations

import argparse
import asyncio
import errno
import io
import math
import os
from pathlib import Path

import pytest

import client

pytestmark = pytest.mark.timeout(10)

END = client.AFTER_TEXT


def test_prompts_are_stripped_and_blank_lines_skipped(tmp_path: Path) -> None:
    """A prompt is a line without its surrounding blanks, and a blank line is none."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff one\r\n\n  \n\ttwo  zwei \nthree".encode())
    assert ["one", "two  zwei", "three"] == client.read_prompts(str(path))


def test_the_repositorys_prompts_are_the_tutorials() -> None:
    """prompts.txt holds the four prompts of the tutorial."""
    path = Path(client.__file__).with_name("prompts.txt")
    expected = ["Hello, my name is", "The most dangerous animal is"]
    expected += ["The capital of France is", "The future of AI is"]
    assert expected == client.read_prompts(str(path))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, os.strerror(errno.ENOENT)),
        (b" \n\n", "no prompts, only blank lines"),
        (b"abc\xff", "not UTF-8 text (at byte 3)"),
    ],
    ids=["missing", "blank", "not text"],
)
def test_bad_prompts_file_is_one_line_and_exit_code_2(
    content: bytes | None, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prompts file that gives no prompts is named with the reason, before any server."""
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    assert 2 == client.main([f"--input-prompts={path}"])
    assert f"client.py: {path}: {reason}\n" == capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--iterations=0"], "--iterations: must be greater than 0: 0"),
        (["--concurrency=-1"], "--concurrency: must be greater than 0: -1"),
        (["--stream-timeout=inf"], "--stream-timeout: must be greater than 0: inf"),
        (["--max-tokens=many"], "--max-tokens: invalid int value: 'many'"),
        (["--sampling-parameters=[1]"], 'not a JSON object like {"top_k": 5}: [1]'),
        (["--sampling-parameters={"], "--sampling-parameters: not JSON:"),
        (["--nonesuch"], "unrecognized arguments: --nonesuch"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage error names the flag and what came, in one line."""
    with pytest.raises(SystemExit) as raised:
        client.parse_flags(arguments)
    stderr = capsys.readouterr().err
    assert (2, 1) == (raised.value.code, stderr.count("\n"))
    assert named in stderr


def test_defaults_are_the_tutorials() -> None:
    """Without flags the client does what the tutorial's client did."""
    flags = client.parse_flags([])
    expected = ("localhost:8001", "vllm", 1, "prompts.txt", "results.txt", 0, None, False)
    names = "url model iterations input_prompts results_file offset stream_timeout streaming_mode"
    assert expected == tuple(getattr(flags, name) for name in names.split())
    expected_sampling = {"max_tokens": 100, "temperature": 0.1, "top_p": 0.95}
    assert expected_sampling == client.sampling_parameters(flags)


def test_sampling_parameters_object_wins_over_flags() -> None:
    """The JSON object is merged over the flags."""
    flags = client.parse_flags(["--seed=1", '--sampling-parameters={"seed": 2, "n": 3}'])
    expected = {"max_tokens": 100, "temperature": 0.1, "top_p": 0.95, "seed": 2, "n": 3}
    assert expected == client.sampling_parameters(flags)


def test_results_are_written_in_id_order_as_soon_as_possible() -> None:
    """A text waits for all ids before it, and no longer."""
    file = io.StringIO()
    results = client.OrderedResults(file, first_id=5, window=3)
    results.put(6, "b")
    assert "" == file.getvalue()
    results.put(5, "a")
    assert f"a{END}b{END}" == file.getvalue()


def test_closing_gaps_keeps_each_text_at_its_id() -> None:
    """A run broken off writes empty entries for the ids that have no text."""
    file = io.StringIO()
    results = client.OrderedResults(file, first_id=0, window=8)
    results.put(1, "b")
    results.put(4, "e")
    results.close_gaps()
    assert ["", "b", "", "", "e", ""] == file.getvalue().split(END)


def test_no_id_starts_further_ahead_than_the_window() -> None:
    """The window counts from the oldest unwritten id, however many later ones are complete."""

    async def started_past_a_slow_first_id() -> list[bool]:
        results = client.OrderedResults(io.StringIO(), first_id=0, window=3)
        for _ in range(3):
            await results.room_for_one()
        results.put(1, "b")
        results.put(2, "c")
        waiting = asyncio.ensure_future(results.room_for_one())
        await asyncio.sleep(0)
        before = waiting.done()
        results.put(0, "a")
        await waiting
        return [before, waiting.done()]

    assert [False, True] == asyncio.run(started_past_a_slow_first_id())


def test_quantiles_are_those_of_all_durations() -> None:
    """Exact, and none where nothing was counted."""
    durations = client.Durations()
    for milliseconds in range(1001):
        durations.add(milliseconds / 1e3)
    expected = [pytest.approx(0.5), pytest.approx(0.99)]
    assert expected == [durations.quantile(0.5), durations.quantile(0.99)]
    assert math.isnan(client.Durations().quantile(0.5))


def test_summary_names_tokens_only_when_the_model_counted_them() -> None:
    """Messages are not called tokens."""
    figures = client.Figures(passed=3, failed=1, messages=20)
    figures.count_message(first=True, seconds=0.1)
    figures.count_message(first=False, seconds=0.01)
    expected = (
        "4 requests (1 failed) in 2.00 s, 1.5 requests/s, 11.0 messages/s; "
        f"first token {figures.first_text}; between messages {figures.between_texts}"
    )
    assert expected == figures.summary(2.0, streaming=True)
    figures.tokens = 30
    assert "messages/s, 15.0 tokens/s; whole answer" in figures.summary(2.0, streaming=False)


def test_a_servers_message_is_folded_into_one_line() -> None:
    """Line breaks in an error do not break the promise of one line."""
    assert "a b c" == client.one_line("a\n  b\r\n\nc\n")


def test_json_object_parses_an_object() -> None:
    """An object is returned as it is; anything else is refused."""
    assert {"n": 2} == client.json_object('{"n": 2}')
    with pytest.raises(argparse.ArgumentTypeError, match="not a JSON object"):
        client.json_object("2")
