"""From messages to a generation: the file that imports vLLM's chat."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.renderers.online_renderer import OnlineRenderer
from vllm.tool_parsers import ToolParserManager

from triton_vllm.config.arguments import command_line
from triton_vllm.errors import MediaError, RequestError, SettingsError
from triton_vllm.protocol.requests import ChatPrompt, Generation, GenerationRequest
from triton_vllm.vllm_api import api as vllm_api
from triton_vllm.vllm_api.compat import chat_utils, cli_args
from triton_vllm.vllm_api.render import text as vllm_text
from triton_vllm.vllm_api.render.chat_reader import ChatReader


def parse_chat_args(given: Mapping[str, Any], engine_args: Any, where: str) -> argparse.Namespace:
    """Return the file's options of chat, checked as ``vllm serve`` does. Raises SettingsError."""
    front_end = cli_args.BaseFrontendArgs
    parser = vllm_api.EngineArgsParser(add_help=False)
    front_end.add_cli_args(parser)
    hints = {f.name: f.type for f in dataclasses.fields(front_end)}
    args: argparse.Namespace = parser.parse_args(command_line(given, hints, parser, where))
    try:
        if args.tool_parser_plugin:
            ToolParserManager.import_tool_parser(args.tool_parser_plugin)
        if getattr(engine_args, "reasoning_parser_plugin", None):
            ReasoningParserManager.import_reasoning_parser(engine_args.reasoning_parser_plugin)
        if args.enable_auto_tool_choice and not args.tool_call_parser:
            raise TypeError('"enable_auto_tool_choice" needs "tool_call_parser"')
        ParserManager.get_tool_parser(args.tool_call_parser, args.enable_auto_tool_choice)
        args.reasoning_parser = engine_args.reasoning_parser
        ParserManager.get_reasoning_parser(args.reasoning_parser)
        if hasattr(cli_args, "validate_reasoning_effort_map"):  # newer than 0.32
            cli_args.validate_reasoning_effort_map(args.reasoning_effort_map)
        chat_utils.validate_chat_template(args.chat_template)
        args.chat_template = chat_utils.load_chat_template(args.chat_template)
    except Exception as error:  # of vLLM's own checks, whose classes differ
        raise SettingsError(f"{where}: {vllm_api.as_keys(error)}") from error
    return args


class ChatRenderer:
    """Turns messages into a generation of one ``AsyncLLM``, and its text into parts."""

    def __init__(self, llm: Any, args: argparse.Namespace) -> None:
        """``args`` are those of ``parse_chat_args``."""
        self._llm = llm
        self._args = args
        self._efforts = frozenset(getattr(args, "reasoning_effort_map", None) or ())
        options = {
            "request_logger": None,
            "enable_auto_tools": args.enable_auto_tool_choice,
            "tool_parser": args.tool_call_parser,
            **vars(args),
        }
        takes = inspect.signature(OnlineRenderer).parameters
        self._online = OnlineRenderer(
            llm.model_config,
            llm.renderer,
            **{name: value for name, value in options.items() if name in takes},
        )

    async def render(self, prompt: ChatPrompt, request: GenerationRequest, lora: Any) -> Generation:
        """Apply the chat template and tokenize. Raises RequestError for wrong messages or tools."""
        chat = _checked(prompt, request, self._efforts)
        before = chat.to_sampling_params(1, {})
        try:
            rendered = await self._online.render_chat(chat)
        except MediaError as error:
            raise MediaError(f"messages: {error}") from error
        if not isinstance(rendered, tuple):
            raise RequestError(f"messages: {vllm_api.why_wrong(rendered.error.message)}")
        _, (engine_input,) = rendered
        # vLLM's parsers may keep special tokens, or bind the model to a grammar.
        params = _changed(request.sampling_params, before, chat.to_sampling_params(1, {}))
        kwargs = self._template_kwargs(chat)
        parsers = [self._parser(chat, kwargs) for _ in range(request.num_sequences)]
        reasoning = _reasoning_state(chat, parsers[0], kwargs, engine_input)
        tokenizer = self._llm.renderer.tokenizer
        reader = ChatReader(chat, parsers, params, tokenizer, stream=request.stream)
        return Generation(
            lambda take: vllm_text.generate(
                self._llm, engine_input, request, params, lora, take, **reasoning
            ),
            reader.read,
        )

    def _template_kwargs(self, chat: Any) -> dict[str, Any]:
        args = self._args
        # newer than 0.32
        mapped = {"reasoning_effort_map": args.reasoning_effort_map} if self._efforts else {}
        params = chat.build_chat_params(
            args.chat_template, args.chat_template_content_format, **mapped
        )
        kwargs: dict[str, Any] = params.with_defaults(
            args.default_chat_template_kwargs
        ).chat_template_kwargs
        return kwargs

    def _parser(self, chat: Any, template_kwargs: Mapping[str, Any]) -> Any:
        """Return a parser for one sequence, which keeps its state; None where none is named."""
        if self._online.parser is None:
            return None
        return self._online.parser(
            self._llm.renderer.tokenizer,
            chat.tools,
            chat_template_kwargs=template_kwargs,
            model_config=self._llm.model_config,
        )


def _checked(prompt: ChatPrompt, request: GenerationRequest, efforts: Collection[str]) -> Any:
    """Return vLLM's form of the request. It holds of the sampling what vLLM's parsers look at.

    A reasoning effort among the template's arguments that is one of ``efforts``, the keys of the
    operator's ``reasoning_effort_map``, becomes the request's own: only that is mapped by vLLM.
    """
    params = request.sampling_params
    effort = prompt.options.get("chat_template_kwargs", {}).get("reasoning_effort")
    try:
        return ChatCompletionRequest.model_validate(
            {
                "messages": prompt.messages,
                **prompt.options,
                **({"reasoning_effort": effort} if effort in efforts else {}),
                "n": params.n,
                "stream": request.stream,
                "skip_special_tokens": params.skip_special_tokens,
                "structured_outputs": params.structured_outputs,
                "cache_salt": request.options.cache_salt,
            }
        )
    except ValidationError as error:
        complaint = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in complaint["loc"]) or "messages"
        raise RequestError(f"{place}: {complaint['msg']}") from None


def _changed(params: Any, before: Any, after: Any) -> Any:
    """Return ``params`` with what differs between ``before`` and ``after``."""
    changes = {
        name: getattr(after, name)
        for name in type(after).__struct_fields__
        if getattr(after, name) != getattr(before, name)
    }
    if changes:
        params = copy.copy(params)
        for name, value in changes.items():
            setattr(params, name, value)
    return params


def _reasoning_state(
    chat: Any, parser: Any, template_kwargs: Mapping[str, Any], engine_input: Any
) -> dict[str, Any]:
    """Return what the engine should know, so that a grammar begins to bind after the reasoning."""
    if parser is None:
        return {}
    prompt = engine_input.get("prompt_token_ids") or []
    if hasattr(chat, "resolve_reasoning_ended"):  # newer than 0.26
        ended = chat.resolve_reasoning_ended(parser, prompt)
    elif getattr(chat, "_grammar_from_tool_parser", False):
        ended = True
    else:
        ended = parser.is_reasoning_end(prompt) if parser.reasoning_parser else None
    kwargs = {"chat_template_kwargs": template_kwargs} if parser.reasoning_parser else None
    return {"reasoning_ended": ended, "reasoning_parser_kwargs": kwargs}
