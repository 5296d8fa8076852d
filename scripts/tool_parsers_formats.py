"""How a model writes tool calls for each of vLLM's tool parsers, from 0.26.0 to 0.33.0.

The formats are those that the parsers' own documentation shows.
"""

from __future__ import annotations

from tool_parsers_markup import (
    M3,
    Format,
    array_item,
    dsml,
    filled,
    function_gemma_call,
    gemma4_call,
    glm,
    json_call,
    json_list,
    kimi_k3_call,
    minimax_m3_call,
    python_call,
    qwen_xml,
    tagged_json,
    xml_call,
)

_HERMES = tagged_json("tool_call")
_GLM = glm()
_QWEN = qwen_xml()
_LLAMA = Format(json_call("parameters"), between="; ", marks=("<|python_tag|>",))
_V3 = "<｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜>"
_STEP3 = "<｜tool_calls_begin｜> <｜tool_calls_end｜> <｜tool_call_begin｜> <｜tool_call_end｜>"
_K2 = "<|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|>"
_IFM = "<ifm|tool_calls> </ifm|tool_calls> <ifm|tool_call> </ifm|tool_call>"
_INKLING = "<|message_model|> <|content_text|> <|content_thinking|> <|end_message|>"
_PLAMO = (
    "<|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>{name}"
    "<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json"
    "<|plamo:msg|>{given}<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>"
)

FORMATS: dict[str, Format] = {
    "apertus": Format(
        array_item,
        "<|tools_prefix|>[",
        ", ",
        "]<|tools_suffix|>",
        ("<|tools_prefix|>", "<|tools_suffix|>"),
    ),
    "deepseek_v3": Format(
        filled(
            "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{name}\n"
            "```json\n{given}\n```<｜tool▁call▁end｜>"
        ),
        "<｜tool▁calls▁begin｜>",
        "\n",
        "<｜tool▁calls▁end｜>",
        (*_V3.split(), "<｜tool▁sep｜>"),
    ),
    "deepseek_v31": Format(
        filled("<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{given}<｜tool▁call▁end｜>"),
        "<｜tool▁calls▁begin｜>",
        "",
        "<｜tool▁calls▁end｜>",
        (*_V3.split(), "<｜tool▁sep｜>"),
    ),
    "deepseek_v32": dsml("function_calls"),
    "deepseek_v4": dsml("tool_calls"),
    "deepseek_v41": dsml("calls", " "),
    "dots": Format(
        xml_call(
            '<invoke name="{name}">\n', '<parameter name="{key}">{value}</parameter>\n', "</invoke>"
        ),
        "<dots_function_call>\n",
        "\n",
        "\n</dots_function_call>",
        ("<dots_function_call>", "</dots_function_call>"),
    ),
    "ernie45": Format(
        json_call(before="<tool_call>\n", after="\n</tool_call>\n"),
        marks="<tool_call> </tool_call> <response> </response> <think> </think>".split(),
    ),
    "functiongemma": Format(
        function_gemma_call,
        between="",
        marks=("<start_function_call>", "<end_function_call>", "<escape>"),
    ),
    "gemma4": Format(
        gemma4_call,
        between="",
        marks='<|tool_call> <tool_call|> <|"|> <|channel> <channel|>'.split(),
    ),
    "gigachat3": Format(
        json_call(before="<|function_call|>"),
        marks="<|function_call|> <|message_sep|> <|role_sep|>".split(),
    ),
    "glm45": _GLM,
    "glm47": _GLM,
    "granite": json_list("<|tool_call|>", marks=("<|tool_call|>",)),
    "granite-20b-fc": Format(json_call(before="<function_call> "), marks=("<function_call>",)),
    "granite4": _HERMES,
    "hermes": _HERMES,
    "hunyuan_a13b": json_list("<tool_calls>", "</tool_calls>"),
    "hy_v3": glm(
        "<tool_calls>\n",
        "\n</tool_calls>",
        "<tool_sep>\n",
        ("<tool_calls>", "</tool_calls>", "<tool_sep>"),
    ),
    "hy_v4": glm(
        "<tool_calls>",
        "</tool_calls>",
        "",
        ("<tool_calls>", "</tool_calls>", "<think>", "</think>"),
        line="",
    ),
    "inkling": Format(
        filled(
            "<|message_model|><|content_invoke_tool_json|>"
            '{"name": "{name}", "args": {given}}<|end_message|>'
        ),
        between="",
        marks=(
            *_INKLING.split(),
            "<|content_invoke_tool_json|>",
            "<|content_invoke_tool_text|>",
            "<|content_tool_error|>",
            "<|content_model_end_sampling|>",
        ),
        text="<|message_model|><|content_text|>{}<|end_message|>",
    ),
    "internlm": Format(
        json_call("parameters", "<|action_start|><|plugin|>", "<|action_end|>"),
        marks="<|action_start|> <|plugin|> <|action_end|>".split(),
    ),
    "jamba": json_list("<tool_calls>", "</tool_calls>", ("<tool_calls>", "</tool_calls>")),
    "k2_horizon": Format(
        xml_call(
            "<ifm|tool_call>{name}",
            "<ifm|arg_key>{key}</ifm|arg_key><ifm|arg_value>{value}</ifm|arg_value>",
            "</ifm|tool_call>",
        ),
        "<ifm|tool_calls>",
        "",
        "</ifm|tool_calls>",
        _IFM.split(),
    ),
    "kimi_k2": Format(
        filled(
            "<|tool_call_begin|>functions.{name}:0<|tool_call_argument_begin|>{given}"
            "<|tool_call_end|>"
        ),
        "<|tool_calls_section_begin|>",
        "",
        "<|tool_calls_section_end|>",
        (*_K2.split(), "<|tool_call_end|>", "<|tool_call_argument_begin|>"),
    ),
    "kimi_k3": Format(
        kimi_k3_call,
        "<|open|>tools<|sep|>",
        "",
        "<|close|>tools<|sep|>",
        ("<|open|>", "<|close|>", "<|sep|>"),
        "<|open|>response<|sep|>{}<|close|>response<|sep|>",
    ),
    "lfm2": Format(
        python_call,
        "<|tool_call_start|>[",
        ", ",
        "]<|tool_call_end|>",
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "ling3": _GLM,
    "llama3_json": _LLAMA,
    "llama4_json": _LLAMA,
    "llama4_pythonic": Format(
        python_call,
        "<|python_start|>[",
        ", ",
        "]<|python_end|>",
        ("<|python_start|>", "<|python_end|>"),
    ),
    "longcat": tagged_json("longcat_tool_call"),
    "mimo": qwen_xml(line=""),
    "minicpm5": Format(
        xml_call('<function name="{name}">', '<param name="{key}">{value}</param>', "</function>"),
        marks="<function </function> <param </param>".split(),
    ),
    "minimax_m2": Format(
        xml_call(
            '<invoke name="{name}">\n', '<parameter name="{key}">{value}</parameter>\n', "</invoke>"
        ),
        "<minimax:tool_call>\n",
        "\n",
        "\n</minimax:tool_call>",
        ("<minimax:tool_call>", "</minimax:tool_call>"),
    ),
    "minimax_m3": Format(
        minimax_m3_call,
        f"{M3}<tool_call>\n",
        "\n",
        f"\n{M3}</tool_call>",
        (M3, "<tool_call>", "</tool_call>"),
    ),
    "mistral": Format(
        filled("[TOOL_CALLS]{name}[ARGS]{given}"), between="", marks=("[TOOL_CALLS]", "[ARGS]")
    ),
    "muse_glimmer": Format(
        xml_call(
            '<atem:invoke name="{name}">\n',
            '<atem:parameter name="{key}">{value}</atem:parameter>\n',
            "</atem:invoke>",
        ),
        " to=functions.weather<|message|><atem:function_calls>\n",
        "\n",
        "\n</atem:function_calls><|eom|>",
        "<|start|> <|message|> <|eom|> <|eot|>".split(),
        " to=user<|message|>{}<|eom|>",
    ),
    "olmo3": Format(python_call, "<function_calls>\n", "\n", "\n</function_calls>"),
    "phi4_mini_json": json_list("functools"),
    "plamo3": Format(
        filled(_PLAMO),
        "<|plamo:begin_tool_requests:plamo|>",
        "",
        "<|plamo:end_tool_requests:plamo|>",
    ),
    "poolside_v1": _GLM,
    "pythonic": Format(python_call, "[", ", ", "]"),
    "qwen3_coder": _QWEN,
    "qwen3_json": _HERMES,
    "qwen3_xml": _QWEN,
    "seed_oss": qwen_xml("seed:tool_call"),
    "step3": Format(
        xml_call(
            '<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="{name}">\n',
            '<steptml:parameter name="{key}">{value}</steptml:parameter>\n',
            "</steptml:invoke><｜tool_call_end｜>",
        ),
        "<｜tool_calls_begin｜>\n",
        "\n",
        "\n<｜tool_calls_end｜>",
        (*_STEP3.split(), "<｜tool_sep｜>"),
    ),
    "step3p5": _QWEN,
    "xlam": json_list(),
}
# The parsers without a format here, and why.
NOT_TRIED = {
    "openai": "reads gpt-oss's token ids, with its own tokenizer",
    "hf": "takes its format from the model's tokenizer",
    "cohere_command3": "needs the package cohere_melody",
    "cohere_command4": "needs the package cohere_melody",
    "beam": "new in vLLM 0.33",
    "muse": "new in vLLM 0.33",
    "musespark1x": "new in vLLM 0.33",
    "step5": "new in vLLM 0.33",
}
