"""Read each kind of prompt from its inputs. RequestError names the input that is wrong."""

from __future__ import annotations

from typing import Any, NamedTuple

from triton_vllm.errors import RequestError
from triton_vllm.protocol.fields import load_json, load_json_object
from triton_vllm.protocol.requests import (
    ChatPrompt,
    EmbedRequest,
    MediaPrompt,
    Prompt,
    ScoreRequest,
    TextPrompt,
)
from triton_vllm.protocol.tensors import Inputs

MEDIA = frozenset({"image", "audio", "video"})
CHAT_BOOLEANS = frozenset({"add_generation_prompt", "continue_final_message"})
CHAT_OPTIONS = CHAT_BOOLEANS | {"tools", "tool_choice", "chat_template_kwargs"}
_TOOL_CHOICES = ("auto", "none", "required")


class PromptWithParameters(NamedTuple):
    """A prompt and the parameters in the same input; ``where`` names their place in errors."""

    prompt: Prompt
    where: str
    parameters: dict[str, Any]


def read_text(inputs: Inputs) -> Prompt:
    """Read ``text_input`` and its media."""
    text = inputs.string("text_input")
    media = {kind: inputs.strings(kind) for kind in sorted(MEDIA) if kind in inputs}
    return MediaPrompt(text, media) if any(media.values()) else TextPrompt(text)


def read_chat(inputs: Inputs) -> Prompt:
    """Read ``messages`` and the options of a chat. vLLM checks their contents."""
    messages = _array(inputs, "messages")
    options = {name: _option(inputs, name) for name in sorted(CHAT_OPTIONS) if name in inputs}
    if options.get("continue_final_message"):  # else the two contradict each other
        options.setdefault("add_generation_prompt", False)
    return ChatPrompt(messages, options)


def _option(inputs: Inputs, name: str) -> Any:
    if name in CHAT_BOOLEANS:
        return inputs.boolean(name)
    if name == "tools":
        return _array(inputs, name)
    text = inputs.string(name)
    if name == "chat_template_kwargs":
        return _template_kwargs(text, name)
    if text in _TOOL_CHOICES:
        return text
    if text.lstrip()[:1] in ("{", '"'):
        return load_json(text, name)
    raise RequestError(
        f"tool_choice: must be {', '.join(_TOOL_CHOICES)}, or a JSON object that names a "
        f"function, got {text[:100]}"
    )


def _template_kwargs(text: str, name: str) -> dict[str, Any]:
    """Return the template's variables. vLLM ignores those that are parameters of its own."""
    kwargs = load_json_object(text, name)
    for key in sorted(CHAT_OPTIONS & kwargs.keys()):
        raise RequestError(f'{name}: "{key}" is an input of its own, beside {name}')
    return kwargs


def _array(inputs: Inputs, name: str) -> list[Any]:
    value = load_json(inputs.string(name), name)
    if not isinstance(value, list) or not value:
        raise RequestError(f"{name}: must be a JSON list of at least one object")
    return value


def read_texts(inputs: Inputs) -> Prompt:
    """Read ``texts``."""
    return EmbedRequest(_filled(inputs, "texts"))


def read_pairs(inputs: Inputs) -> Prompt:
    """Read ``queries`` and ``documents``."""
    queries = _filled(inputs, "queries")
    if "documents" not in inputs:
        raise RequestError("documents: missing, queries are scored against them")
    documents = _filled(inputs, "documents")
    if len(queries) not in (1, len(documents)):
        raise RequestError(
            f"queries: must be one, or as many as the {len(documents)} documents, "
            f"got {len(queries)}"
        )
    return ScoreRequest(queries, documents)


def _filled(inputs: Inputs, name: str) -> list[str]:
    if texts := inputs.strings(name):
        return texts
    raise RequestError(f"{name}: must have at least one element, has none")


def read_embedding_request(inputs: Inputs) -> PromptWithParameters:
    """Read ``embedding_request``: ``input`` is a text or its token ids, or a list of such."""
    where = "embedding_request"
    given = load_json_object(inputs.string(where), where)
    for key in given.keys() - {"input", "pooling_params"}:
        raise RequestError(f'{where}: unknown key "{key}", allowed: input, pooling_params')
    came = given.get("input")
    texts = came if isinstance(came, list) and not _is_text(came) else [came]
    if not texts or not all(_is_text(text) for text in texts):
        raise RequestError(
            f'{where}: "input" must be a string, a list of token ids, or a list of either'
        )
    parameters = given.get("pooling_params", {})
    if not isinstance(parameters, dict):
        raise RequestError(f'{where}: "pooling_params" must be an object')
    dimensions = parameters.get("dimensions")
    if isinstance(dimensions, list) and len(dimensions) == 1:  # as Triton's front end sends it
        parameters["dimensions"] = dimensions[0]
    prompt = EmbedRequest(texts, as_json=True)
    return PromptWithParameters(prompt, f'{where}: "pooling_params"', parameters)


def _is_text(value: object) -> bool:
    """Return whether it is a text, or a text's token ids."""
    if isinstance(value, list):
        return bool(value) and all(type(v) is int and v >= 0 for v in value)
    return isinstance(value, str)
