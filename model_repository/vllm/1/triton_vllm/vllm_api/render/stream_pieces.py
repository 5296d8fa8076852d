"""Take a piece of a stream apart into its tokens: many of vLLM's parsers expect one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Piece = tuple[str, list[int]]  # the text and its tokens

_INCOMPLETE = "\ufffd"  # what a part of a character decodes to


def by_token(
    decode: Callable[[list[int]], str], text: str, token_ids: Sequence[int]
) -> list[Piece]:
    """Return a piece's text token by token; tokens that share a character stay together.

    ``decode`` returns the text of tokens. The piece comes back as one if its tokens do not decode
    to ``text``, for example because a stop string is awaited. The last token may be one that ended
    the text and is not in it.
    """
    if len(token_ids) < 2:
        return [(text, list(token_ids))]
    pieces: list[Piece] = []
    waiting: list[int] = []
    for token in token_ids:
        waiting.append(token)
        said = decode(waiting)
        if not said.endswith(_INCOMPLETE):
            pieces.append((said, waiting))
            waiting = []
    if waiting:
        pieces.append(("", waiting))
    if text == "".join(said for said, _ in pieces[:-1]):
        pieces[-1] = ("", pieces[-1][1])
    elif text != "".join(said for said, _ in pieces):
        return [(text, list(token_ids))]
    return pieces
