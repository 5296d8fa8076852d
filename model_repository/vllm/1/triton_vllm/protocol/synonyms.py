"""Other servers' names for parameters and inputs, so that an error can name this server's.

They are the names of OpenAI, TensorRT-LLM's backend, Hugging Face's generate, SGLang and former
vLLM versions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from triton_vllm.errors import did_you_mean


@dataclass(frozen=True, slots=True)
class Ours:
    """This server's parameter, and the text after it; an input if ``parameter`` is empty."""

    parameter: str
    more: str = ""

    def __str__(self) -> str:
        """Return the words that follow "use"."""
        return f'"{self.parameter}"{self.more}' if self.parameter else self.more


def _structured(key: str) -> Ours:
    return Ours("structured_outputs", f' with the key "{key}"')


def _input(name: str) -> Ours:
    return Ours("", f'the input "{name}"')


def _meanings() -> Iterator[tuple[str, Ours]]:
    same: dict[str, str] = {
        "max_tokens": "max_completion_tokens max_new_tokens max_output_tokens max_output_len "
        "max_length request_output_len num_predict n_predict",
        "min_tokens": "min_length min_new_tokens",
        "stop": "stop_words stop_words_list stop_sequences stop_strings stop_sequence stop_str",
        "stop_token_ids": "end_id end_ids eos_token_id stop_ids",
        "bad_words": "bad_words_list bad_words_ids",
        "seed": "random_seed",
        "n": "best_of num_return_sequences num_outputs",
        "top_k": "runtime_top_k",
        "top_p": "runtime_top_p",
        "length_penalty": "len_penalty",
        "repetition_penalty": "repeat_penalty",
        "logit_bias": "embedding_bias logits_bias",
        "logprobs": "top_logprobs num_logprobs top_n_tokens",
        "prompt_logprobs": "decoder_input_details",
        "include_stop_str_in_output": "no_stop_trim",
        "lora_name": "lora lora_id lora_task_id lora_path adapter adapter_id adapter_name",
        "timeout_seconds": "timeout_s timeout_secs timeout_ms max_time",
    }
    for ours, others in same.items():
        yield from ((other, Ours(ours)) for other in others.split())
    for other in ("beam_width", "num_beams"):
        yield other, Ours("n", ' with "use_beam_search"')
    for key in ("json", "regex", "choice", "grammar"):
        yield f"guided_{key}", _structured(key)
    for key in ("json", "regex", "choice", "grammar", "json_object", "structural_tag"):
        yield key, _structured(key)
    for other in ("response_format", "json_schema", "schema", "guided_decoding"):
        yield other, _structured("json")
    for other in ("guided_decoding_guide", "guided_decoding_guide_type"):
        yield other, _structured("json")
    yield "ebnf", _structured("grammar")
    yield "guided_whitespace_pattern", _structured("whitespace_pattern")
    yield "do_sample", Ours("temperature", ", where 0 is greedy")
    inputs: dict[str, str] = {
        "exclude_input_in_output": "echo return_full_text",
        "return_logprobs": "return_log_probs return_logprob",
        "return_prompt_logprobs": "return_context_logits",
        "return_output_ids": "return_token_ids return_tokens_as_token_ids",
        "return_reasoning": "include_reasoning",
        "tools": "functions",
        "tool_choice": "function_call",
        "chat_template_kwargs": "reasoning_effort enable_thinking",
        "stream": "streaming",
        "text_input": "prompt text inputs",
    }
    for ours, others in inputs.items():
        yield from ((other, _input(ours)) for other in others.split())


MEANINGS = dict(_meanings())


def hint(name: str, known: Collection[str]) -> str:
    """Return what to use instead of an unknown parameter: by meaning first, by spelling second.

    It follows the name in an error's text; empty for none.
    """
    ours = MEANINGS.get(name.lower().replace("-", "_"))
    if ours is not None and (not ours.parameter or ours.parameter in known):
        return f", use {ours}"
    if name == "truncate_prompt_tokens":
        return ", which only pooling models take: cut the prompt, or send it as input_ids"
    return did_you_mean(name, known)
