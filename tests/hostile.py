"""Malformed requests, and some that are right or nearly right.

Strategies for the parsing layer and for the real server, and how many of them a test tries.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.pictures import odd_images, png


def cases(count: int) -> settings:
    """Return hypothesis' settings: as many cases, the same in each run, however long one takes."""
    return settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# Half of a surrogate pair: JSON escapes it inside a tensor, and UTF-8 cannot hold it.
HALVES = ["\ud83d", "a\udc00b", "\ude00\ud83d"]
# Names that the parser knows, and some that it does not.
NAMES = st.sampled_from(
    [
        *("n", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "stop_token_ids"),
        *("max_tokens", "min_tokens", "logprobs", "prompt_logprobs", "logit_bias", "bad_words"),
        *("presence_penalty", "frequency_penalty", "repetition_penalty", "ignore_eos"),
        *("skip_special_tokens", "detokenize", "structured_outputs", "allowed_token_ids"),
        *("timeout_seconds", "on_timeout", "priority", "cache_salt", "data_parallel_rank"),
        *("lora_name", "output_kind", "extra_args", "thinking_token_budget", "_all_stop_token_ids"),
        *("__class__", "", "temprature", "N", "truncate_prompt_tokens", *HALVES),
    ]
)
NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 10**9, 1]),
    st.floats(allow_nan=True, allow_infinity=True),
)
ODD_TEXTS = ["\0", "a\0b", "true", "1e999", "NaN", "{", *HALVES]
TEXTS = st.one_of(st.text(max_size=30), st.sampled_from(ODD_TEXTS))
REGEXES = ["a{1,5}", "(a|b)+c", "(?=a)b", "a{2,1}", "[", "(", "\0"]
GRAMMARS = st.fixed_dictionaries(
    {},
    optional={
        "regex": st.sampled_from(REGEXES),
        "json": st.sampled_from(
            [
                {"type": "string", "minLength": 5, "maxLength": 1},
                {"type": "array", "minItems": -1},
                {"$ref": "#"},
                {"$ref": "file:///etc/passwd"},
                {"enum": [f"v{number}" for number in range(50)]},
                {"type": "nosuch"},
                "{",
                "",
            ]
        ),
        "grammar": st.sampled_from(['root ::= "a" root | "b"', "root ::=", "", "x"]),
        "choice": st.sampled_from([[], ["a"], ["a" * 10**5], [f"c{n}" for n in range(50)]]),
    },
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=4).map(
    # Small texts, so that what is accepted is soon done.
    lambda given: {"max_tokens": 4, **given}
)
DEEP = st.integers(10, 100_000).map(lambda depth: "[" * depth + "]" * depth)
JSONS: st.SearchStrategy[bytes] = st.one_of(
    OBJECTS.map(lambda given: json.dumps(given).encode()),
    st.tuples(OBJECTS, GRAMMARS).map(
        lambda both: json.dumps({**both[0], "structured_outputs": both[1]}).encode()
    ),
    st.builds(
        lambda name, value: json.dumps({"max_tokens": 4, name: value}).encode(), NAMES, VALUES
    ),
    DEEP.map(str.encode),
    DEEP.map(lambda deep: f'{{"stop": {deep}}}'.encode()),
    st.binary(max_size=50),
    TEXTS.map(lambda text: text.encode(errors="replace")),
    st.just(b'{"stop": "' + b"x" * 1_000_000 + b'"}'),
)
CONTENTS_OF_CHATS = st.recursive(
    TEXTS, lambda inner: st.dictionaries(st.sampled_from(["type", "text", *HALVES]), inner)
)
MESSAGES: st.SearchStrategy[bytes] = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "tool"]) | TEXTS},
        optional={"content": CONTENTS_OF_CHATS | st.lists(CONTENTS_OF_CHATS, max_size=2)},
    ),
    max_size=3,
).map(lambda messages: json.dumps(messages).encode())
PROMPTS: st.SearchStrategy[bytes] = st.one_of(
    st.text(max_size=50).map(lambda text: text.encode(errors="replace")),
    st.binary(max_size=50),
    st.sampled_from([b"", b"\0", b"a\0b", b"\xff\xfe", b"<|im_start|>" * 50, "é".encode()[:1]]),
    st.integers(1, 200).map(lambda thousands: b"hello " * thousands * 1000),
)


SIDES = st.sampled_from([1, 2, 3, 13, 14, 15, 28, 56, 57, 199, 201, 1000])
IMAGES: st.SearchStrategy[bytes] = st.one_of(
    st.sampled_from(list(odd_images().values())),
    st.builds(png, SIDES, SIDES, st.tuples(*[st.integers(0, 255)] * 3)),
)


def damaged(files: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """Return one of ``files``, whole, cut or with some bytes changed; or bytes at random."""
    whole = st.sampled_from(files)

    def cut(content: bytes, part: float) -> bytes:
        return content[: int(len(content) * part)]

    def changed(content: bytes, places: list[tuple[float, int]]) -> bytes:
        changes = bytearray(content)
        for place, value in places:
            changes[int((len(changes) - 1) * place)] = value
        return bytes(changes)

    places = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20)
    return st.one_of(
        whole,
        st.builds(cut, whole, st.floats(0, 1)),
        st.builds(changed, whole, places),
        st.binary(max_size=200),
    )


def encoded(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Return it as a request's tensor has it."""
    return content.map(base64.b64encode)


DAMAGED_IMAGES = st.one_of(IMAGES, damaged([*odd_images().values(), png(40, 30, (9, 9, 9))]))
URLS = st.sampled_from(
    [
        *(b"", b"data:", b"data:image/png;base64,", b"http://", b"file:///etc/passwd", b"\xff"),
        *(b"http://[::1]/a.png", b"http://169.254.169.254/latest", b"data:;base64,AAAA"),
    ]
)
MEDIA_ITEMS = st.lists(encoded(DAMAGED_IMAGES) | URLS, max_size=3)


# What goes with text_input, right or wrong.
STRINGS = {"sampling_parameters": JSONS, "SAMPLING_PARAMETERS": JSONS, "PROMPT": PROMPTS}
FLAGS = [
    *("stream", "exclude_input_in_output", "STREAM", "return_finish_reason"),
    *("return_logprobs", "return_output_ids", "return_num_cached_tokens"),
]
OTHERS: dict[str, st.SearchStrategy[Any]] = {
    **STRINGS,
    **dict.fromkeys(FLAGS, st.booleans()),
    "messages": MESSAGES,
    "chat_template_kwargs": JSONS,
    "input_ids": st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5),
    **dict.fromkeys(("image", "audio", "video"), MEDIA_ITEMS),
}

WORDS = st.text(st.characters(min_codepoint=32, codec="utf-8"), min_size=1, max_size=20)
# Each may come with each of the others.
RIGHT_PARAMETERS = st.fixed_dictionaries(
    {"max_tokens": st.integers(1, 4)},
    optional={
        "n": st.integers(1, 2),
        "temperature": st.floats(0.1, 2),
        "top_p": st.floats(0.1, 1),
        "top_k": st.integers(0, 100),
        "min_p": st.floats(0, 1),
        "seed": st.integers(0, 2**32),
        "stop": WORDS | st.lists(WORDS, max_size=2),
        "stop_token_ids": st.lists(st.integers(0, 1000), max_size=2),
        "min_tokens": st.integers(0, 1),
        "logprobs": st.integers(0, 3),
        "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-9, 9), max_size=2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(0.5, 2),
        "ignore_eos": st.booleans(),
        "skip_special_tokens": st.booleans(),
        "structured_outputs": st.sampled_from([{"choice": ["yes", "no"]}, {"regex": "[ab]{1,3}"}]),
    },
)


def right() -> st.SearchStrategy[dict[str, Any]]:
    """Return inputs that ask for a text in one of the ways there are, with nothing wrong."""
    parameters = RIGHT_PARAMETERS.map(lambda given: json.dumps(given).encode())
    words = WORDS.map(str.encode)
    chat = WORDS.map(lambda text: json.dumps([{"role": "user", "content": text}]).encode())
    returned = {name: st.booleans() for name in FLAGS if name.startswith("return_")}
    along = {"stream": st.booleans(), "exclude_input_in_output": st.just(True), **returned}
    both = {"sampling_parameters": parameters}
    return st.one_of(
        st.fixed_dictionaries({"text_input": words, **both}, optional=along),
        st.fixed_dictionaries({"messages": chat, **both}, optional=along),
        st.fixed_dictionaries(
            {"input_ids": st.lists(st.integers(0, 9999), min_size=1, max_size=5), **both},
            optional=along,
        ),
        st.fixed_dictionaries(
            {"PROMPT": words, "SAMPLING_PARAMETERS": parameters}, optional={"STREAM": st.booleans()}
        ),
    )


@st.composite
def nearly_right(draw: st.DrawFn) -> dict[str, Any]:
    """Return inputs of ``right`` with one thing changed, which may do no harm."""
    inputs = draw(right())
    name = draw(st.sampled_from(sorted(inputs)))
    where = next(name for name in inputs if name.lower() == "sampling_parameters")
    parameters = json.loads(inputs[where])
    match draw(st.sampled_from(["left out", "added", "cut", "parameter", "misspelt"])):
        case "left out":
            del inputs[name]
        case "added":
            other = draw(st.sampled_from(sorted(OTHERS)))
            inputs[other] = draw(OTHERS[other])
        case "cut":
            inputs[where] = inputs[where][: draw(st.integers(0, len(inputs[where])))]
        case "parameter":
            inputs[where] = json.dumps({**parameters, draw(NAMES): draw(VALUES)}).encode()
        case "misspelt":
            key = draw(st.sampled_from(sorted(parameters)))
            inputs[where] = json.dumps({**parameters, key[:-1]: parameters.pop(key)}).encode()
    return inputs


# No model has such: the server refuses them, or it reads past the end of something.
DATATYPES = st.sampled_from(["BYTES", "INT64", "FP32", "BOOL", "UINT8", "FP16", "BF16", "X", ""])
SHAPES = st.sampled_from(
    [(1,), (), (0,), (1, 1), (2,), (2, 2), (-1,), (2**31,), (2**62, 4), (1,) * 40]
)
CONTENTS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from(
        [
            *(b"\1\0\0\0a", b"\5\0\0\0a", b"\xff\xff\xff\xffa", b"\xff\xff\xff\x7f", b"\0\0"),
            *(b"\1\0\0\0a" * 2, b"\0" * 8, b"\1", b"", b"x" * 100_000),
        ]
    ),
)


def tensors() -> st.SearchStrategy[dict[str, Any]]:
    """Return inputs: some right, some nearly, and a prompt or not with whatever else."""
    return st.one_of(
        st.builds(dict, right()),  # one of five: one_of would take each of its own for one
        nearly_right(),
        st.fixed_dictionaries({"text_input": PROMPTS, "sampling_parameters": JSONS}),
        st.fixed_dictionaries({"text_input": PROMPTS}, optional=OTHERS),
        st.fixed_dictionaries({"messages": MESSAGES}, optional=STRINGS),
        st.fixed_dictionaries({}, optional={"text_input": PROMPTS, **OTHERS}),
    )
