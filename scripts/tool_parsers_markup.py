"""How models write tool calls: the markups that several of vLLM's tool parsers share."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tool_parsers_cases import Call

M3 = "]<]minimax[>["


@dataclass(frozen=True, slots=True)
class Format:
    """The text of calls: ``begin``, each call, ``between`` two of them, ``end``.

    ``marks`` are the pieces that the models' tokenizers have as one token each. ``text`` wraps what
    is said beside the calls.
    """

    call: Callable[[str, dict[str, Any]], str]
    begin: str = ""
    between: str = "\n"
    end: str = ""
    marks: Sequence[str] = ()
    text: str = "{}"

    def calls(self, calls: Sequence[Call]) -> str:
        """Return the text of one or more calls."""
        if not calls:
            return ""
        return self.begin + self.between.join(self.call(*call) for call in calls) + self.end


def as_json(value: Any) -> str:
    """Return JSON with letters as they are, which is how chat templates write it."""
    return json.dumps(value, ensure_ascii=False)


def as_text(value: Any) -> str:
    """Return a string as it is, and other values as JSON: the usual value of an XML parameter."""
    return value if isinstance(value, str) else as_json(value)


def json_call(key: str = "arguments", before: str = "", after: str = "") -> Callable[..., str]:
    """Return the writer of a JSON object with the name and, under ``key``, the arguments."""
    return lambda name, given: before + as_json({"name": name, key: given}) + after


def xml_call(head: str, parameter: str, tail: str) -> Callable[..., str]:
    """Return the writer of an element for the call, with one for each argument."""

    def write(name: str, given: dict[str, Any]) -> str:
        parameters = [parameter.format(key=key, value=as_text(given[key])) for key in given]
        return head.format(name=name) + "".join(parameters) + tail

    return write


def python_call(name: str, given: dict[str, Any]) -> str:
    """Return a call as Python writes it."""
    return f"{name}({', '.join(f'{key}={value!r}' for key, value in given.items())})"


def gemma_value(value: Any) -> str:
    """Return a value as Gemma 4 writes it: strings between marks, keys bare."""
    match value:
        case str():
            return f'<|"|>{value}<|"|>'
        case dict():
            return "{" + ",".join(f"{key}:{gemma_value(value[key])}" for key in value) + "}"
        case list():
            return "[" + ",".join(map(gemma_value, value)) + "]"
        case _:
            return json.dumps(value)


def gemma4_call(name: str, given: dict[str, Any]) -> str:
    """Return a call as Gemma 4 writes it."""
    return f"<|tool_call>call:{name}{gemma_value(given)}<tool_call|>"


def function_gemma_call(name: str, given: dict[str, Any]) -> str:
    """Return a call as FunctionGemma writes it: each value between marks."""
    values = ",".join(f"{key}:<escape>{as_text(given[key])}<escape>" for key in given)
    return f"<start_function_call>call:{name}{{{values}}}<end_function_call>"


def minimax_m3_element(key: str, value: Any) -> str:
    """Return an argument as MiniMax M3 writes it: nested elements, each behind the namespace."""
    match value:
        case dict():
            inner = "".join(minimax_m3_element(name, value[name]) for name in value)
        case list():
            inner = "".join(minimax_m3_element("item", item) for item in value)
        case _:
            inner = as_text(value)
    return f"{M3}<{key}>{inner}{M3}</{key}>"


def minimax_m3_call(name: str, given: dict[str, Any]) -> str:
    """Return a call as MiniMax M3 writes it."""
    elements = "".join(minimax_m3_element(key, given[key]) for key in given)
    return f'{M3}<invoke name="{name}">\n{elements}\n{M3}</invoke>'


def kimi_k3_call(name: str, given: dict[str, Any]) -> str:
    """Return a call as Kimi K3 writes it: each argument with its type."""
    names = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}
    arguments = "".join(
        f'<|open|>argument key="{key}" type="{names.get(type(value), "array")}"<|sep|>'
        f"{as_text(value)}<|close|>argument<|sep|>"
        for key, value in given.items()
    )
    return f'<|open|>call tool="{name}" index="1"<|sep|>{arguments}<|close|>call<|sep|>'


def array_item(name: str, given: dict[str, Any]) -> str:
    """Return an object whose one key is the function."""
    return as_json({name: given})


def dsml(tag: str, space: str = "") -> Format:
    """Return DeepSeek's markup, whose outer element is ``tag``."""
    mark = "｜DSML｜" + space

    def write(name: str, given: dict[str, Any]) -> str:
        parameters = "".join(
            f'<{mark}parameter name="{key}" string="{str(isinstance(value, str)).lower()}">'
            f"{as_text(value)}</{mark}parameter>\n"
            for key, value in given.items()
        )
        return f'<{mark}invoke name="{name}">\n{parameters}</{mark}invoke>'

    marks = (f"<{mark}{tag}>", f"</{mark}{tag}>")
    return Format(write, f"{marks[0]}\n", "\n", f"\n{marks[1]}", marks)


def glm(
    begin: str = "", end: str = "", sep: str = "\n", marks: Sequence[str] = (), line: str = "\n"
) -> Format:
    """Return the markup of GLM and of those who took it over."""
    call = xml_call(
        f"<tool_call>{{name}}{sep}",
        f"<arg_key>{{key}}</arg_key>{line}<arg_value>{{value}}</arg_value>{line}",
        "</tool_call>",
    )
    inner = "<tool_call> </tool_call> <arg_key> </arg_key> <arg_value> </arg_value>".split()
    return Format(call, begin, line, end, (*inner, *marks))


def qwen_xml(tag: str = "tool_call", line: str = "\n") -> Format:
    """Return the markup of Qwen3-Coder and of those who took it over."""
    call = xml_call(
        f"<{tag}>{line}<function={{name}}>{line}",
        f"<parameter={{key}}>{line}{{value}}{line}</parameter>{line}",
        f"</function>{line}</{tag}>",
    )
    return Format(call, marks=(f"<{tag}>", f"</{tag}>"))


def tagged_json(tag: str) -> Format:
    """Return one JSON object for each call, between tags."""
    call = json_call(before=f"<{tag}>\n", after=f"\n</{tag}>")
    return Format(call, marks=(f"<{tag}>", f"</{tag}>"))


def json_list(begin: str = "", end: str = "", marks: Sequence[str] = ()) -> Format:
    """Return a JSON list of calls."""
    return Format(json_call(), begin + "[", ", ", "]" + end, marks)


def filled(pattern: str) -> Callable[..., str]:
    """Return the writer of a pattern with the name and the arguments' JSON."""
    return lambda name, given: pattern.replace("{name}", name).replace("{given}", as_json(given))
