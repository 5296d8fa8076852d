"""Chat with vLLM's real renderer and parsers, on what a model might have said."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.outputs import CompletionOutput, RequestOutput

from triton_vllm.errors import RequestError, SettingsError
from triton_vllm.protocol.delta import Delta
from triton_vllm.protocol.outputs import CHAT_OUTPUTS
from triton_vllm.protocol.requests import (
    ChatPrompt,
    EngineOptions,
    Generation,
    GenerationRequest,
    TextPrompt,
)
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.arguments import parse_engine_args
from triton_vllm.vllm_api.compat import cli_args
from triton_vllm.vllm_api.parameters import SamplingParser
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.chat import ChatRenderer, parse_chat_args

MAKER = Path(__file__).parents[1] / "e2e/make_tiny_models.py"
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object"}},
}
AUTO: dict[str, Any] = {"tools": [TOOL], "tool_choice": "auto"}
NAMED: dict[str, Any] = {
    "tools": [TOOL],
    "tool_choice": {"type": "function", "function": {"name": "add"}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


class FakeEngine:
    """``AsyncLLM`` as far as rendering goes; ``asked`` is what ``generate`` was called with."""

    def __init__(self, config: Any) -> None:
        from vllm.renderers import renderer_from_config

        self.model_config = config.model_config
        self.renderer = renderer_from_config(config)
        self.observability_config = SimpleNamespace(otlp_traces_endpoint=None)
        self.asked: dict[str, Any] = {}

    def generate(self, engine_input: Any, params: Any, request_id: str, **how: Any) -> Any:
        self.asked = {"engine_input": engine_input, "params": params, **how}
        return self._nothing()

    async def _nothing(self) -> Any:
        return
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model with a chat template, and a token for each byte."""
    path = tmp_path_factory.mktemp("models") / "chat"
    runpy.run_path(str(MAKER))["make_chat"](path)
    return str(path)


@pytest.fixture(scope="module")
def engine(model: str) -> FakeEngine:
    args = parse_engine_args({"model": model, "max_model_len": 256}, "f", print)
    return FakeEngine(vllm_api.create_config(args))


def chat_args(**given: Any) -> argparse.Namespace:
    reasoning = given.pop("reasoning_parser", "")
    return parse_chat_args(given, SimpleNamespace(reasoning_parser=reasoning), "f")


HERMES: dict[str, Any] = {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}


def render(
    engine: FakeEngine,
    *,
    stream: bool = False,
    args: dict[str, Any] | None = None,
    messages: Any = None,
    parameters: dict[str, Any] | None = None,
    **options: Any,
) -> Generation:
    """Return the work that a chat request makes."""
    params, engine_options = SamplingParser({}).parse(parameters or {}, stream=stream, where="p")
    prompt = ChatPrompt(messages or [{"role": "user", "content": "Hi"}], options)
    request = GenerationRequest(
        request_id="r",
        prompt=prompt,
        stream=stream,
        sampling_params=params,
        options=engine_options or EngineOptions(),
        outputs=CHAT_OUTPUTS,
    )
    renderer = ChatRenderer(engine, chat_args(**(args or {})))
    return asyncio.run(renderer.render(prompt, request, None))


def output(engine: FakeEngine, text: str, *, finished: bool = True) -> RequestOutput:
    """Return vLLM's output for a text that the model said."""
    tokens = engine.renderer.tokenizer.encode(text, add_special_tokens=False)
    completion = CompletionOutput(
        index=0,
        text=text,
        token_ids=tokens,
        cumulative_logprob=None,
        logprobs=None,
        finish_reason="stop" if finished else None,
    )
    return RequestOutput("r", None, [1, 2], None, [completion], finished)


def pieces(engine: FakeEngine, work: Generation, texts: list[str]) -> Delta:
    """Read a stream of texts; return all of it."""
    whole: Delta | None = None
    for i, text in enumerate(texts):
        delta = work.read(output(engine, text, finished=i == len(texts) - 1))
        if delta.has_content:
            whole = delta if whole is None else whole + delta
    assert whole is not None
    return whole


def split(text: str) -> list[str]:
    """Return a text as a stream brings it: special tokens whole, all else by the character."""
    return re.findall(r"</?(?:think|tool_call)>|.", text, re.DOTALL)


def asked(engine: FakeEngine, work: Generation) -> dict[str, Any]:
    """Start the work; return what the engine is asked for."""
    work.outputs(None)
    return engine.asked


def test_the_prompt_is_that_of_the_template(engine: FakeEngine) -> None:
    """The token ids are those of transformers' apply_chat_template."""
    messages = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hé?"}]
    given = asked(engine, render(engine, messages=messages))["engine_input"]["prompt_token_ids"]
    tokenizer = engine.renderer.tokenizer
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.encode(prompt, add_special_tokens=False) == given


def test_special_tokens_in_a_text_are_special(engine: FakeEngine) -> None:
    """In a raw prompt as in a message (docs/requests.md)."""
    mark = "<end_of_utterance>"
    token = engine.renderer.tokenizer.convert_tokens_to_ids(mark)
    prompt = TextPrompt(f"a{mark}b")
    params, options = SamplingParser({}).parse({}, stream=False, where="p")
    request = GenerationRequest("r", prompt, False, params, options)
    raw = asked(engine, asyncio.run(vllm_text.render(engine, prompt, request, None)))
    assert token in raw["engine_input"]["prompt_token_ids"]
    messages = [{"role": "user", "content": f"a{mark}b"}]
    chat = asked(engine, render(engine, messages=messages))["engine_input"]
    plain = asked(engine, render(engine, messages=[{"role": "user", "content": "ab"}]))
    count = plain["engine_input"]["prompt_token_ids"].count(token)
    assert count + 1 == chat["prompt_token_ids"].count(token)


def test_the_last_message_can_be_continued(engine: FakeEngine) -> None:
    """The prompt ends where the assistant's message ends."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I say"}]
    how: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    work = render(engine, messages=messages, **how)
    tokenizer = engine.renderer.tokenizer
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, **how)
    assert prompt.endswith("I say")
    expected = tokenizer.encode(prompt, add_special_tokens=False)
    assert expected == asked(engine, work)["engine_input"]["prompt_token_ids"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_without_parsers_all_is_content(engine: FakeEngine, stream: bool) -> None:
    """Nothing is taken out of the text, and nothing is awaited."""
    text = f"<think>no</think>{CALL}"
    texts = split(text) if stream else [text]
    said = pieces(engine, render(engine, stream=stream), texts)
    assert (text,) == said.texts
    assert said.extras
    assert ("", []) == (
        said.extras.sequences[0].reasoning,
        [*said.extras.sequences[0].tool_calls],
    )


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_tool_call_is_an_output_of_its_own(engine: FakeEngine, stream: bool) -> None:
    """VLLM's hermes parser finds the call after the content; the reason is tool_calls."""
    text = f"Sure.{CALL}"
    work = render(engine, stream=stream, args=HERMES, **AUTO)
    said = pieces(engine, work, split(text) if stream else [text])
    assert said.extras
    (sequence,) = said.extras.sequences
    assert ("Sure.", "tool_calls") == (said.texts[0].strip(), sequence.finish_reason)
    calls = [*sequence.tool_calls]
    assert calls[0]["id"]
    functions = [call["function"] for call in calls]
    assert "add" == "".join(f.get("name") or "" for f in functions)
    arguments = "".join(f.get("arguments") or "" for f in functions)
    assert {"a": 1} == json.loads(arguments)
    json.dumps(calls)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
def test_reasoning_is_an_output_of_its_own(engine: FakeEngine, stream: bool, parser: str) -> None:
    """The text before </think> is reasoning, the text after it is content."""
    text = "<think>Let me see</think>Paris"
    work = render(engine, stream=stream, args={"reasoning_parser": parser})
    said = pieces(engine, work, split(text) if stream else [text])
    assert said.extras
    (sequence,) = said.extras.sequences
    found = (sequence.reasoning.strip(), said.texts[0].strip(), sequence.finish_reason)
    assert ("Let me see", "Paris", "stop") == found


@pytest.mark.parametrize("size", [1, 4, 1000], ids=["by token", "by four", "at once"])
def test_a_stream_in_larger_pieces_has_the_same_call(engine: FakeEngine, size: int) -> None:
    """A busy server merges pieces, and speculation makes them longer; this parser loses calls then.

    The text has characters of several tokens, which the pieces cut.
    """
    text = '<function_call> {"name": "add", "arguments": {"a": "São"}}'
    tokenizer = engine.renderer.tokenizer
    args = {"tool_call_parser": "granite-20b-fc", "enable_auto_tool_choice": True}
    work = render(engine, stream=True, args=args, **AUTO)
    ids = tokenizer.encode(text, add_special_tokens=False)
    starts = [i for i in range(0, len(ids), size) if "\ufffd" not in tokenizer.decode(ids[:i])]
    texts = [
        tokenizer.decode(ids[start:end]) for start, end in itertools.zip_longest(starts, starts[1:])
    ]
    said = pieces(engine, work, texts)
    assert said.extras
    (sequence,) = said.extras.sequences
    functions = [call["function"] for call in sequence.tool_calls]
    assert "add" == "".join(each.get("name") or "" for each in functions)
    arguments = "".join(each.get("arguments") or "" for each in functions)
    assert {"a": "São"} == json.loads(arguments)
    assert ("", "tool_calls") == (said.texts[0], sequence.finish_reason)


@pytest.mark.parametrize("parser", ["qwen3", "deepseek_r1"])
def test_a_stream_in_one_piece_has_the_same_reasoning(engine: FakeEngine, parser: str) -> None:
    """Read as one piece, the mark before the reasoning would be a part of it."""
    work = render(engine, stream=True, args={"reasoning_parser": parser})
    said = pieces(engine, work, ["<think>Let me see</think>Paris"])
    assert said.extras
    found = (said.extras.sequences[0].reasoning.strip(), said.texts[0].strip())
    assert ("Let me see", "Paris") == found


def test_what_a_parser_cannot_read_is_text(
    engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    """Two calls make the parser for InternLM raise: no client's mistake, and no lost answer."""
    calls = '<|action_start|><|plugin|>{"name": "add", "parameters": {}}<|action_end|>' * 2
    args = {"tool_call_parser": "internlm", "enable_auto_tool_choice": True}
    said = pieces(engine, render(engine, args=args, **AUTO), [calls])
    assert said.extras
    (sequence,) = said.extras.sequences
    assert (calls, [], "stop") == (said.texts[0], [*sequence.tool_calls], sequence.finish_reason)
    assert 1 == len([line for line in caplog.messages if "cannot read the text" in line])


def test_the_parts_come_as_they_are_said(engine: FakeEngine) -> None:
    """Each delta holds one part; nothing is sent that says nothing; no token is lost."""
    args = {"reasoning_parser": "qwen3", **HERMES}
    work = render(engine, stream=True, args=args, **AUTO)
    texts = split(f"<think>Hm</think>Ok{CALL}")
    deltas = [
        work.read(output(engine, text, finished=i == len(texts) - 1))
        for i, text in enumerate(texts)
    ]
    news = [delta for delta in deltas if delta.has_content]
    parts = []
    for delta in news:
        assert delta.extras
        (sequence,) = delta.extras.sequences
        parts.append((bool(sequence.reasoning), bool(delta.texts[0]), bool(sequence.tool_calls)))
    assert all(sum(part) == 1 for part in parts[:-1]), parts
    assert (True, False, False) == parts[0]
    total = sum(len(engine.renderer.tokenizer.encode(t, add_special_tokens=False)) for t in texts)
    assert total == sum(delta.num_tokens for delta in news)
    counted = [len(s.token_ids) for d in news if d.extras for s in d.extras.sequences]
    assert total == sum(counted)


def test_a_named_function_binds_the_engine_to_a_grammar(engine: FakeEngine) -> None:
    """What vLLM's parser adds to the request reaches the engine, and the client's own stays."""
    work = render(engine, args=HERMES, parameters={"temperature": 0.5, "max_tokens": 7}, **NAMED)
    params = asked(engine, work)["params"]
    assert params.structured_outputs is not None
    assert (0.5, 7) == (params.temperature, params.max_tokens)
    plain = asked(engine, render(engine, parameters={"max_tokens": 7}))["params"]
    assert (None, 7) == (plain.structured_outputs, plain.max_tokens)


def test_a_clients_own_grammar_is_kept(engine: FakeEngine) -> None:
    """structured_outputs goes with messages as with any prompt."""
    parameters = {"structured_outputs": {"regex": "a+"}}
    params = asked(engine, render(engine, args=HERMES, parameters=parameters))["params"]
    assert "a+" == params.structured_outputs.regex


def test_the_engine_knows_whether_the_model_reasons(engine: FakeEngine) -> None:
    """A grammar must not bind the reasoning; without a parser nothing is said of it."""
    args = {"reasoning_parser": "qwen3"}
    kwargs: dict[str, Any] = {"chat_template_kwargs": {"enable_thinking": False}}
    given = asked(engine, render(engine, args=args, **kwargs))
    assert False is given["reasoning_parser_kwargs"]["chat_template_kwargs"]["enable_thinking"]
    assert "reasoning_ended" in given
    assert "reasoning_ended" not in asked(engine, render(engine))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (AUTO, '"enable_auto_tool_choice" and "tool_call_parser" in vllm_engine_args.json'),
        ({"continue_final_message": True, "add_generation_prompt": True}, "Cannot set both"),
        (NAMED, 'requires "tool_call_parser" in vllm_engine_args.json'),
        ({"tool_choice": "auto"}, "tool"),
        ({"tools": [{"type": "function"}]}, "tools.0.function: Field required"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0"),
        ({"chat_template_kwargs": {"chat_template": "{{ x }}"}}, "Refused request with untrusted"),
    ],
    ids=[
        "no auto",
        "both ends of a prompt",
        "no parser",
        "no tools",
        "no function",
        "wrong content",
        "own template",
    ],
)
def test_wrong_chats_are_refused(
    engine: FakeEngine, options: dict[str, Any], expected: str
) -> None:
    """The error has one line, and the engine does not see the request."""
    with pytest.raises(Exception) as raised:  # noqa: PT011 (ours, or vLLM's)
        render(engine, **options)
    explained = vllm_api.to_serving_error(raised.value)
    assert isinstance(explained, RequestError)
    assert expected in str(explained)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tool_call_parser": "hermes"}, None),
        (HERMES, None),
        ({"enable_auto_tool_choice": "true", "tool_call_parser": "hermes"}, None),
        ({"enable_auto_tool_choice": True}, '"enable_auto_tool_choice" needs "tool_call_parser"'),
        ({"tool_call_parser": "zeus", "enable_auto_tool_choice": True}, "zeus"),
        ({"reasoning_parser": "none such"}, "none such"),
        ({"chat_template": "/no/such/file.jinja"}, "/no/such/file.jinja"),
        ({"default_chat_template_kwargs": {"enable_thinking": False}}, None),
        ({"chat_template_content_format": "html"}, "invalid choice"),
    ],
    ids=[
        "named only",
        "auto",
        "as strings",
        "auto without a parser",
        "unknown tool parser",
        "unknown reasoning parser",
        "missing template",
        "default kwargs",
        "wrong format",
    ],
)
def test_settings_are_checked_as_in_vllm_serve(given: dict[str, Any], expected: str | None) -> None:
    """A wrong one fails the load, with the reason."""
    if expected is None:
        assert chat_args(**given)
    else:
        with pytest.raises(SettingsError, match=re.escape(expected)):
            chat_args(**given)


def test_default_template_kwargs_apply(engine: FakeEngine) -> None:
    """The operator's stand where the client says nothing, and give way where it does."""
    args = {"default_chat_template_kwargs": {"shout": True}}
    lengths = [
        len(asked(engine, render(engine, **how))["engine_input"]["prompt_token_ids"])
        for how in ({}, {"args": args}, {"args": args, "chat_template_kwargs": {"shout": False}})
    ]
    assert [lengths[0], lengths[0] + len("LOUD "), lengths[0]] == lengths


def test_each_key_of_ours_is_an_option_of_this_vllm() -> None:
    """What settings.py sets aside for chat is known, but for what newer versions have."""
    from dataclasses import fields

    from triton_vllm.config.settings import CHAT_KEYS

    known = {field.name for field in fields(cli_args.BaseFrontendArgs)}
    assert set(CHAT_KEYS) - known <= {"tool_strict_level", "reasoning_effort_map"}


@pytest.mark.skipif(
    not hasattr(cli_args, "validate_reasoning_effort_map"), reason="newer than vLLM 0.32"
)
def test_reasoning_efforts_are_mapped(engine: FakeEngine) -> None:
    """The template and the parsers get what the operator's map makes of a client's effort."""
    args = {"reasoning_effort_map": {"low": "tiny"}, "reasoning_parser": "qwen3"}
    for effort, expected in (("low", "tiny"), ("other", "other")):
        kwargs = {"reasoning_effort": effort}
        work = asked(engine, render(engine, args=dict(args), chat_template_kwargs=kwargs))
        parsers = work["reasoning_parser_kwargs"]["chat_template_kwargs"]
        assert expected == parsers["reasoning_effort"]
    with pytest.raises(SettingsError, match="unknown efforts"):
        chat_args(reasoning_effort_map={"lowest": "tiny"})
