"""A piece of a stream is taken apart into its tokens, or left as it is."""

from __future__ import annotations

import pytest

from triton_vllm.vllm_api.render.stream_pieces import by_token

END = 256


def decode(token_ids: list[int]) -> str:
    """Decode bytes as a byte-level tokenizer does; the token that ends a text has a name."""
    known = bytes(token for token in token_ids if token != END).decode(errors="replace")
    return known + "<end>" * token_ids.count(END)


@pytest.mark.parametrize(
    ("text", "token_ids", "expected"),
    [
        ("ab", [*b"ab"], [("a", [97]), ("b", [98])]),
        ("a\u00e9", [*"a\u00e9".encode()], [("a", [97]), ("\u00e9", [0xC3, 0xA9])]),
        ("a", [97, END], [("a", [97]), ("", [END])]),
        ("ab<end>", [*b"ab", END], [("a", [97]), ("b", [98]), ("<end>", [END])]),
        ("a", [97, 0xC3], [("a", [97]), ("", [0xC3])]),
        ("", [END, END], [("", [END, END])]),
        ("a", [*b"ab", END], [("a", [*b"ab", END])]),
        ("a", [97], [("a", [97])]),
        ("", [], [("", [])]),
    ],
    ids=[
        "two",
        "a character of two tokens",
        "the end",
        "the end in the text",
        "half a character",
        "another text",
        "held back",
        "one",
        "none",
    ],
)
def test_a_piece_by_token(
    text: str, token_ids: list[int], expected: list[tuple[str, list[int]]]
) -> None:
    """All tokens are there in order, and the texts join to the text."""
    found = by_token(decode, text, token_ids)
    assert expected == found
    assert (text, token_ids) == (
        "".join(said for said, _ in found),
        [token for _, tokens in found for token in tokens],
    )
