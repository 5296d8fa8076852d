"""Prompts to send: synthetic ones of an exact length, a ShareGPT-like file, or lines of a file."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from loadgen.load import Prompt

_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
]
_TOKENS_A_WORD = 4 / 3  # in English prose, about


class WorkloadError(Exception):
    """A dataset cannot be used, for the reason in the message."""


class Tokenizer(Protocol):
    """The part of a tokenizer that this module uses."""

    def words(self) -> list[str]:
        """Return words that are one token each, as a rule, when a space precedes them."""

    def count(self, text: str) -> int:
        """Return how many tokens a prompt is, those included that the tokenizer adds."""


class ModelTokenizer:
    """The model's own tokenizer, by the package ``tokenizers``."""

    def __init__(self, path: Path) -> None:
        """``path`` is a ``tokenizer.json`` or the folder that holds one."""
        from tokenizers import Tokenizer as Fast

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise WorkloadError(f"{file}: no such file; --tokenizer needs a tokenizer.json")
        self._tokenizer: Any = Fast.from_file(str(file))

    def words(self) -> list[str]:
        """Return the vocabulary's words of three to nine small letters, at most 20 000."""
        pieces = (p[1:] for p in self._tokenizer.get_vocab() if p[0] in "Ġ▁")
        fit = sorted(w for w in pieces if w.isascii() and w.isalpha() and w.islower())
        return [w for w in fit if 3 <= len(w) <= 9][:20_000] or _WORDS

    def count(self, text: str) -> int:
        """Return how many tokens a prompt is."""
        return len(self._tokenizer.encode(text).ids)


class ApproximateTokenizer:
    """An estimate without a tokenizer: a common word is one token, three others are four."""

    def words(self) -> list[str]:
        """Return common words."""
        return _WORDS

    def count(self, text: str) -> int:
        """Return about how many tokens a text is."""
        words = text.split()
        common = sum(word in _WORDS for word in words)
        return round(common + (len(words) - common) * _TOKENS_A_WORD)


def tokenizer_of(path: Path | None) -> Tokenizer:
    """Return the tokenizer at ``path``; for None, an approximate one."""
    return ModelTokenizer(path) if path else ApproximateTokenizer()


def synthetic(
    tokenizer: Tokenizer,
    number: int,
    input_tokens: int,
    output_tokens: int,
    *,
    shared_prefix: int = 0,
    output_spread: float = 0.0,
    seed: int = 0,
) -> tuple[Prompt, ...]:
    """Return prompts of random words, each of exactly ``input_tokens`` tokens.

    The first ``shared_prefix`` words, about a token each, are the same in all of them. With an
    ``output_spread`` of 0.5 the answers are from half to one and a half times ``output_tokens``
    long, evenly; of 0, all alike, so that what begins together ends together.
    """
    if not 0 <= shared_prefix <= input_tokens:
        raise WorkloadError(f"a shared prefix of {shared_prefix} in {input_tokens} input tokens")
    if not 0 <= output_spread < 1:
        raise WorkloadError(f"an output spread of {output_spread}: must be from 0 to below 1")
    lengths = random.Random(f"lengths {seed}")
    rng = random.Random(seed)
    words = tokenizer.words()
    prefix = rng.choices(words, k=shared_prefix)
    return tuple(
        Prompt(
            _exactly(tokenizer, words, prefix, input_tokens, rng),
            max(1, round(output_tokens * lengths.uniform(1 - output_spread, 1 + output_spread))),
        )
        for _ in range(number)
    )


def _exactly(
    tokenizer: Tokenizer,
    words: Sequence[str],
    prefix: Sequence[str],
    tokens: int,
    rng: random.Random,
) -> str:
    """Return ``prefix`` and further words that are ``tokens`` tokens together."""
    text = [*prefix, *rng.choices(words, k=max(1, tokens - len(prefix)))]
    for _ in range(100):
        excess = tokenizer.count(" ".join(text)) - tokens
        if excess == 0:
            return " ".join(text)
        if excess > 0:  # words are a token or more: this may take too many, never too few
            del text[max(1, len(text) - excess) :]
            excess = tokenizer.count(" ".join(text)) - tokens
        if excess < 0:
            text += rng.choices(words, k=-excess)
        else:
            text[-1] = rng.choice(words)
    raise WorkloadError(f"found no random words that are exactly {tokens} tokens: too few, perhaps")


def sharegpt(
    path: Path,
    tokenizer: Tokenizer,
    number: int,
    *,
    output_tokens: int = 0,
    max_tokens: int = 2048,
    seed: int = 0,
) -> tuple[Prompt, ...]:
    """Return the first turns of a ShareGPT-like JSON file's conversations, in random order.

    ``output_tokens`` 0: as many as the file's answer has. A conversation whose prompt and answer
    exceed ``max_tokens`` together is left out, as is one without an answer.
    """
    try:
        conversations = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkloadError(f"{path}: {error}") from None
    pairs = list(_first_turns(conversations))
    random.Random(seed).shuffle(pairs)
    prompts = []
    for prompt, answer in pairs:
        wanted = output_tokens or tokenizer.count(answer)
        if wanted and tokenizer.count(prompt) + wanted <= max_tokens:
            prompts.append(Prompt(prompt, wanted))
        if len(prompts) == number:
            break
    return _repeated(prompts, number, path)


def _first_turns(conversations: Any) -> Iterator[tuple[str, str]]:
    for conversation in conversations:
        turns = conversation.get("conversations") or conversation.get("conversation") or []
        if len(turns) >= 2 and turns[0].get("value") and turns[1].get("value"):
            yield turns[0]["value"], turns[1]["value"]


def lines(path: Path, number: int, output_tokens: int) -> tuple[Prompt, ...]:
    """Yield the lines of a file that are not blank, again and again."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: {error}") from None
    found = [Prompt(line.strip(), output_tokens) for line in text.splitlines() if line.strip()]
    return _repeated(found, number, path)


def _repeated(prompts: Sequence[Prompt], number: int, path: Path) -> tuple[Prompt, ...]:
    if not prompts:
        raise WorkloadError(f"{path}: no prompt in it that can be used")
    return tuple(prompts[i % len(prompts)] for i in range(number))
