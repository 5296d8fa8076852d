"""Errors: their statuses and their texts."""

from __future__ import annotations

import pytest

from triton_vllm.errors import (
    CancelledError,
    GenerationError,
    MediaError,
    RequestError,
    RequestTimeoutError,
    ServingError,
    UnavailableError,
    did_you_mean,
    one_line,
)


class Mute(Exception):
    """An exception of a library whose text cannot be made."""

    def __str__(self) -> str:
        raise UnicodeError("no text")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RequestError, "INVALID_ARG"),
        (UnavailableError, "UNAVAILABLE"),
        (CancelledError, "CANCELLED"),
        (RequestTimeoutError, "UNAVAILABLE"),
        (GenerationError, "INTERNAL"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_each_error_has_one_status(error: type[ServingError], expected: str) -> None:
    """Every class of error maps to the Triton status that its documentation draws."""
    assert expected == error.status


def test_the_nearest_name_is_suggested() -> None:
    """A near miss names the nearest known key."""
    assert ', did you mean "temperature"?' == did_you_mean("temprature", ["top_p", "temperature"])


def test_a_far_miss_suggests_nothing() -> None:
    """A name that is like no other gets no suggestion."""
    assert "" == did_you_mean("zzz", ["top_p", "temperature"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\n  two\tthree\r\n"), "one two three"),
        (ValueError(), "ValueError"),
        (ValueError(" \n "), "ValueError"),
        ("two\nlines of text", "two lines of text"),
        ("", ""),
        (ValueError("x" * 2001), "x" * 1997 + "..."),
        (ValueError("x" * 2000), "x" * 2000),
        (ValueError("half \ud83d, whole \U0001f600"), "half \\ud83d, whole \U0001f600"),
        (Mute(), "Mute"),
    ],
    ids=[
        "several lines",
        "no text",
        "blank text",
        "a text",
        "an empty one",
        "too long",
        "just not too long",
        "not Unicode",
        "an error whose text fails",
    ],
)
def test_an_error_becomes_one_line(error: Exception | str, expected: str) -> None:
    """Any error's text is one line of bounded length, encodable, and never empty."""
    assert expected == one_line(error)
    assert expected.encode() == one_line(error).encode()


def test_an_error_that_quotes_what_came_is_no_longer_than_a_line() -> None:
    """Whoever raises it, and whatever a client sent: an error is read by a person."""
    error = MediaError('image_url: unknown scheme "' + "x" * 10_000_000 + '"')
    assert 2000 == len(str(error))
    assert str(error).startswith('image_url: unknown scheme "xxx')
    assert isinstance(error, ValueError)


def test_a_name_of_megabytes_is_not_compared_with_those_that_are_known() -> None:
    """The comparison takes as long as the name."""
    assert "" == did_you_mean("temperature" * 1_000_000, ["top_p", "temperature"])
