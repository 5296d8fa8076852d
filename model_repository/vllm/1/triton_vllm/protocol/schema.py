"""The input tensors, the kinds of requests by the input that holds the prompt, and config.pbtxt.

Two sets of names are understood, that of Triton's own vLLM backend and that of the 2023 tutorial.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triton_vllm.protocol.outputs import (
    CHAT_OUTPUTS,
    EMBEDDINGS,
    OUTPUT_TENSORS,
    OUTPUTS,
    SCORES,
    Output,
)
from triton_vllm.protocol.prompts import (
    CHAT_OPTIONS,
    MEDIA,
    PromptWithParameters,
    read_chat,
    read_embedding_request,
    read_pairs,
    read_text,
    read_texts,
)
from triton_vllm.protocol.requests import Prompt, TextPrompt, TokenPrompt
from triton_vllm.protocol.tensors import Inputs, Tensor

EXCLUDE_INPUT = "exclude_input_in_output"
FLAGS = {output.flag: output for output in OUTPUTS}
CHAT_FLAGS = {output.flag: output for output in CHAT_OUTPUTS}
INPUTS = (
    Tensor("text_input", "STRING", 1, "the prompt, UTF-8"),
    Tensor("input_ids", "INT64", -1, "the prompt as token ids, in place of text_input"),
    Tensor("image", "STRING", -1, "images for the placeholders in text_input: base64, or URLs"),
    Tensor("audio", "STRING", -1, "likewise, audio"),
    Tensor("video", "STRING", -1, "likewise, videos"),
    Tensor("messages", "STRING", 1, "JSON list of OpenAI's chat messages, in place of text_input"),
    Tensor("tools", "STRING", 1, "JSON list of OpenAI's tools, for messages"),
    Tensor("tool_choice", "STRING", 1, '"auto", "none", "required", or JSON naming a function'),
    Tensor("chat_template_kwargs", "STRING", 1, "JSON object for the model's chat template"),
    Tensor("add_generation_prompt", "BOOL", 1, "false: no beginning of the assistant's turn"),
    Tensor("continue_final_message", "BOOL", 1, "true: the last message's text is continued"),
    Tensor("stream", "BOOL", 1, "true: a response for each piece of new text"),
    Tensor("sampling_parameters", "STRING", 1, "JSON object of vLLM's SamplingParams"),
    Tensor(EXCLUDE_INPUT, "BOOL", 1, "true: the text without the prompt"),
    *(
        Tensor(flag, "BOOL", 1, f"true: {o.tensor.name} in each response")
        for flag, o in FLAGS.items()
    ),
    *(Tensor(flag, "BOOL", 1, f"false: no {o.tensor.name}") for flag, o in CHAT_FLAGS.items()),
    Tensor("texts", "STRING", -1, "texts for a pooling model, which answers a vector for each"),
    Tensor("queries", "STRING", -1, "one query, or as many as documents, for a model that scores"),
    Tensor("documents", "STRING", -1, "what to score the queries against"),
    Tensor("pooling_parameters", "STRING", 1, "JSON object of vLLM's PoolingParams"),
    Tensor("embedding_request", "STRING", 1, "JSON, what Triton's OpenAI front end sends"),
    Tensor("PROMPT", "STRING", 1, "text_input of the tutorial's clients"),
    Tensor("STREAM", "BOOL", 1, "stream of the tutorial's clients"),
    Tensor("SAMPLING_PARAMETERS", "STRING", 1, "sampling_parameters of the tutorial's clients"),
)


@dataclass(frozen=True, slots=True)
class TensorNames:
    """One set of names: all its inputs, and what is called differently in each set."""

    inputs: frozenset[str]
    stream: str = "stream"
    parameters: str = "sampling_parameters"
    text_output: str = "text_output"


TUTORIAL_2023 = TensorNames(
    frozenset({"PROMPT", "STREAM", "SAMPLING_PARAMETERS"}), "STREAM", "SAMPLING_PARAMETERS", "TEXT"
)
POOLING = TensorNames(
    frozenset({"texts", "queries", "documents", "pooling_parameters", "embedding_request"}),
    parameters="pooling_parameters",
)
TRITON_VLLM_BACKEND = TensorNames(
    frozenset(tensor.name for tensor in INPUTS) - TUTORIAL_2023.inputs - POOLING.inputs
)
_CHAT = CHAT_OPTIONS | CHAT_FLAGS.keys()
_PLAIN = TRITON_VLLM_BACKEND.inputs - MEDIA - _CHAT - {"text_input", "input_ids", "messages"}


@dataclass(frozen=True, slots=True)
class RequestSchema:
    """One kind of request: how its prompt is read, and which inputs are allowed beside it."""

    read: Callable[[Inputs], Prompt | PromptWithParameters]
    allowed_inputs: frozenset[str]
    names: TensorNames = TRITON_VLLM_BACKEND
    outputs: tuple[Output, ...] = ()  # sent unless a flag says no
    has_text: bool = True  # beside the outputs


GENERATION_SCHEMAS = {
    "text_input": RequestSchema(read_text, _PLAIN | MEDIA),
    "input_ids": RequestSchema(lambda inputs: TokenPrompt(inputs.integers("input_ids")), _PLAIN),
    "messages": RequestSchema(read_chat, _PLAIN | _CHAT, outputs=CHAT_OUTPUTS),
    "PROMPT": RequestSchema(
        lambda inputs: TextPrompt(inputs.string("PROMPT")), TUTORIAL_2023.inputs, TUTORIAL_2023
    ),
}
_COUNTS = frozenset({"return_num_input_tokens", "return_num_output_tokens"})
_POOLED = _COUNTS | {"pooling_parameters"}
POOLING_SCHEMAS = {
    "texts": RequestSchema(read_texts, _POOLED, POOLING, (EMBEDDINGS,), False),
    "queries": RequestSchema(read_pairs, _POOLED | {"documents"}, POOLING, (SCORES,), False),
    "embedding_request": RequestSchema(read_embedding_request, _COUNTS, POOLING),
}


def complete_config(config: Any) -> Any:
    """Add the missing declarations to ``config``, a ``pb_utils.ModelConfig``; return it.

    So a folder made for Triton's vLLM backend loads. Existing declarations stay unchanged; the
    model checks them when it is initialized. Triton calls this in a separate process before the
    model's, so it must be quick. Raises ValueError for a ``max_batch_size`` above 0, because the
    engine batches.
    """
    declared = config.as_dict()
    given = {tensor["name"] for tensor in declared["input"] + declared["output"]}
    for tensor in INPUTS:
        if tensor.name not in given:
            config.add_input({**tensor.as_config(), "optional": True})
    for tensor in OUTPUT_TENSORS:
        if tensor.name not in given:
            config.add_output(tensor.as_config())
    if "model_transaction_policy" not in declared:
        config.set_model_transaction_policy({"decoupled": True})
    config.set_max_batch_size(0)
    return config
