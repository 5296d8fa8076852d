"""Check a client's JSON values against type hints, by name.

pydantic converts ("0.1", "true", a list in a string) and checks types.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Collection, Mapping
from typing import Any

from triton_vllm.config.arguments import json_types
from triton_vllm.errors import RequestError, did_you_mean, one_line

# What OpenAI, TensorRT-LLM's backend, Hugging Face's generate, SGLang and former vLLM versions call
# a parameter or an input, by the words that follow "use" in an error.
_OTHER_NAMES = {
    '"max_tokens"': "max_completion_tokens max_new_tokens max_output_tokens max_output_len "
    "max_length request_output_len num_predict n_predict",
    '"min_tokens"': "min_length min_new_tokens",
    '"stop"': "stop_words stop_words_list stop_sequences stop_strings stop_sequence stop_str",
    '"stop_token_ids"': "end_id end_ids eos_token_id stop_ids",
    '"bad_words"': "bad_words_list bad_words_ids",
    '"seed"': "random_seed",
    '"n"': "best_of num_return_sequences num_outputs",
    '"n" with "use_beam_search"': "beam_width num_beams",
    '"temperature", where 0 is greedy': "do_sample",
    '"top_k"': "runtime_top_k",
    '"top_p"': "runtime_top_p",
    '"length_penalty"': "len_penalty",
    '"repetition_penalty"': "repeat_penalty",
    '"logit_bias"': "embedding_bias logits_bias",
    '"logprobs"': "top_logprobs num_logprobs top_n_tokens",
    '"prompt_logprobs"': "decoder_input_details",
    '"include_stop_str_in_output"': "no_stop_trim",
    '"lora_name"': "lora lora_id lora_task_id lora_path adapter adapter_id adapter_name",
    '"timeout_seconds"': "timeout_s timeout_secs timeout_ms max_time",
    '"structured_outputs" with the key "json"': "guided_json json response_format json_schema "
    "schema guided_decoding guided_decoding_guide guided_decoding_guide_type",
    '"structured_outputs" with the key "regex"': "guided_regex regex",
    '"structured_outputs" with the key "choice"': "guided_choice choice",
    '"structured_outputs" with the key "grammar"': "guided_grammar grammar ebnf",
    '"structured_outputs" with the key "json_object"': "json_object",
    '"structured_outputs" with the key "structural_tag"': "structural_tag",
    '"structured_outputs" with the key "whitespace_pattern"': "guided_whitespace_pattern",
    'the input "exclude_input_in_output"': "echo return_full_text",
    'the input "return_logprobs"': "return_log_probs return_logprob",
    'the input "return_prompt_logprobs"': "return_context_logits",
    'the input "return_output_ids"': "return_token_ids return_tokens_as_token_ids",
    'the input "return_reasoning"': "include_reasoning",
    'the input "tools"': "functions",
    'the input "tool_choice"': "function_call",
    'the input "chat_template_kwargs"': "reasoning_effort enable_thinking",
    'the input "stream"': "streaming",
    'the input "text_input"': "prompt text inputs",
}
MEANINGS = {other: use for use, others in _OTHER_NAMES.items() for other in others.split()}


def hint(name: str, known: Collection[str]) -> str:
    """Return what to use instead of an unknown parameter: by meaning first, by spelling second.

    It follows the name in an error's text; empty for none.
    """
    use = MEANINGS.get(name.lower().replace("-", "_"))
    if use and (use.startswith("the input") or use.split('"')[1] in known):
        return f", use {use}"
    if name == "truncate_prompt_tokens":
        return ", which only pooling models take: cut the prompt, or send it as input_ids"
    return did_you_mean(name, known)


class Parameter:
    """How a client's value for one parameter is checked."""

    def __init__(self, hint: Any) -> None:
        from pydantic import ConfigDict, TypeAdapter

        config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
        adapter: Any = TypeAdapter(hint, config=config)
        self.validate = adapter.validate_python
        self.types = json_types(hint)  # that it takes
        hints = (hint, *typing.get_args(hint))
        # What pydantic does not make of an object: a msgspec Struct, as late_chunking_params.
        self.struct: Any = next(
            (each for each in hints if hasattr(each, "__struct_fields__")), None
        )
        # Those of an object with fixed keys, as structured_outputs; none of other parameters.
        self.keys = set(self.struct.__struct_fields__ if self.struct else ())
        for each in filter(dataclasses.is_dataclass, hints):
            self.keys |= {f.name for f in dataclasses.fields(each) if f.name[0] != "_"}


class ParameterValidator:
    """The parameters that a client may give, by name and type hint, and the check of each."""

    def __init__(self, hints: Mapping[str, Any]) -> None:
        self._parameters = {name: Parameter(hint) for name, hint in hints.items()}

    @property
    def names(self) -> Collection[str]:
        """The names of all of them."""
        return self._parameters.keys()

    def unpacked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return request parameters, with the lists that came as JSON in strings as lists.

        Triton's request parameters are no lists. Where a parameter takes a string or a list, a
        string is a list only if it holds one that the parameter takes, with at least one element.
        """
        return {name: self._list_in(name, value) or value for name, value in given.items()}

    def _list_in(self, name: str, value: Any) -> list[Any]:
        types = self._parameters[name].types if name in self._parameters else set()
        if types >= {str, list} and isinstance(value, str) and value.startswith("["):
            with contextlib.suppress(ValueError, RecursionError):  # pydantic's is a ValueError, too
                unpacked: list[Any] = json.loads(value)
                self._parameters[name].validate(unpacked)
                check_unicode(unpacked, f'parameters: "{name}"')
                return unpacked
        return []

    def check(self, given: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Return the values of ``given``, converted; ``null`` is left out.

        Raises RequestError naming the parameter, what came, and what is allowed.
        """
        return {
            name: self._check(name, value, where)
            for name, value in given.items()
            if value is not None or name not in self._parameters
        }

    def _check(self, name: str, value: Any, where: str) -> Any:
        parameter = self._parameters.get(name)
        if parameter is None:
            raise RequestError(f'{where}: unknown key "{name}"{hint(name, self._parameters)}')
        where_exactly = f'{where}: "{name}"'
        if isinstance(value, bool) and bool not in parameter.types:  # to pydantic, true is also 1
            raise RequestError(f"{where_exactly}: must not be a boolean, got {_shown(value)}")
        members: dict[str, Any] | None = None
        if isinstance(value, dict) and parameter.keys:
            value = _known_keys(value, parameter.keys, where_exactly)
            if parameter.struct is not None:
                hints = typing.get_type_hints(parameter.struct)
                members = ParameterValidator(hints).check(value, where_exactly)
        try:
            checked = parameter.validate(value if members is None else parameter.struct(**members))
        except Exception as error:
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                return self._check(name, load_json(value, where_exactly), where)
            reason = _reason(error, parameter)
            raise RequestError(f"{where_exactly}: {reason}, got {_shown(value)}") from None
        if isinstance(checked, int) and not -(2**63) <= checked < 2**63:  # as the engine needs it
            raise RequestError(f"{where_exactly}: must fit into 64 bits, got {_shown(value)}")
        return checked


def _known_keys(value: dict[str, Any], keys: Collection[str], where: str) -> dict[str, Any]:
    """Return an object without vLLM's private keys, which come along with a whole dataclass.

    pydantic would ignore an unknown key, and the constraint with it.
    """
    for key in value:
        if key not in keys and not key.startswith("_"):
            nearest = did_you_mean(key, keys) or f", allowed: {', '.join(sorted(keys))}"
            raise RequestError(f'{where}: unknown key "{key}"{nearest}')
    return {key: each for key, each in value.items() if key in keys}


def _reason(error: Exception, parameter: Parameter) -> str:
    """Return pydantic's first complaint in its own words, or the error's text."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return one_line(error)
    complaint = error.errors(include_url=False)[0]
    within = f'"{complaint["loc"][0]}": ' if parameter.keys and complaint["loc"] else ""
    return f"{within}{complaint['msg']}"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 100 else text[:97] + "..."


def load_json_object(text: str, where: str) -> dict[str, Any]:
    """Return the JSON object in ``text``. Raises RequestError saying where it is malformed."""
    value = _parse_json(text, where)
    if not isinstance(value, dict):
        raise RequestError(f"{where}: must be a JSON object, got {_shown(value)}")
    for key, each in value.items():
        check_unicode(each, f'{where}: "{key}"')
    return value


def load_json(text: str, where: str) -> Any:
    """Return the JSON value in ``text``. Raises RequestError saying where it is malformed."""
    value = _parse_json(text, where)
    check_unicode(value, where)
    return value


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} (line {error.lineno}, column {error.colno})"
    except (ValueError, RecursionError) as error:
        reason = one_line(error)
    raise RequestError(f"{where}: not JSON: {reason}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not allowed")  # NaN and Infinity are not JSON


def check_unicode(value: Any, where: str) -> None:
    """Raise RequestError for half of a surrogate pair, which JSON can escape and UTF-8 cannot hold.

    Neither a tokenizer nor Triton takes it.
    """
    if isinstance(value, str | list | dict):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise RequestError(f"{where}: {half} is half of a surrogate pair") from None
        except RecursionError as error:
            raise RequestError(f"{where}: {one_line(error)}") from None
