#!/usr/bin/env python3
"""Compute what fits on a GPU: weights, KV cache, and how many requests of which length at once.

    scripts/size.py meta-llama/Llama-3.1-8B-Instruct --gpu 80GiB
    scripts/size.py /models/mixtral --gpu 141GiB --tp 2 --kv-cache-dtype fp8 --max-num-seqs 256

MODEL is a folder with a checkpoint, or a name on Hugging Face's hub. The script reads its
config.json and the sizes in its safetensors, but no weights. It needs the package transformers, but
not torch, vLLM or a GPU. It computes the KV cache as vLLM divides it into blocks. The memory for
activations and CUDA graphs, which vLLM measures when it starts, is your estimate (--other).
"""

from __future__ import annotations

import argparse
import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kv_cache import DTYPE_BYTES, KV_BYTES, SLIDING, KVCache, Plan, Shape, UnknownError

GIB = 1 << 30
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
SAFETENSORS_FLOATS = {"F32": 4, "F16": 2, "BF16": 2}
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 524288, 1048576)
CONCURRENCIES = (1, 4, 16, 64, 256, 1024)


def weight_bytes(folder: Path, dtype: str) -> int:
    """Return the size of the safetensors of a checkpoint once loaded with ``dtype``.

    From the files' headers, where the files are there; else what the index says of all.
    """
    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if files:
        return sum(_loaded(tensor, dtype) for file in files for tensor in _tensors(file))
    if index.exists():
        return int(json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"])
    raise UnknownError(f"{folder}: neither safetensors nor their index: say --weights 16GiB")


def _tensors(file: Path) -> Iterator[Mapping[str, Any]]:
    """Yield the entries of a safetensors header: its length in 8 bytes, then JSON."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    yield from (entry for name, entry in header.items() if name != "__metadata__")


def _loaded(tensor: Mapping[str, Any], dtype: str) -> int:
    begin, end = tensor["data_offsets"]
    stored = SAFETENSORS_FLOATS.get(tensor["dtype"])
    # Quantized weights stay as they are stored.
    return int(end - begin) if stored is None else (end - begin) // stored * DTYPE_BYTES[dtype]


def checkpoint_folder(model: str) -> Path:
    """Return the folder of a checkpoint; of the hub's, one with its small files only."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download  # what transformers downloads with

    return Path(snapshot_download(model, allow_patterns=["*.json"]))


def parse_size(text: str) -> int:
    """Read a size such as 80GiB or 512MB."""
    match = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", text.strip())
    if match is None or match[2].upper() not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; such as 80GiB, 512MB")
    return int(float(match[1]) * UNITS[match[2].upper()])


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--gpu", type=parse_size, required=True, help="memory of one GPU: 80GiB")
    parser.add_argument("--tp", type=int, default=1, help="tensor_parallel_size")
    parser.add_argument("--pp", type=int, default=1, help="pipeline_parallel_size")
    parser.add_argument("--dp", type=int, default=1, help="data_parallel_size, or replicas")
    parser.add_argument("--dtype", choices=["auto", *DTYPE_BYTES], default="auto")
    parser.add_argument("--kv-cache-dtype", choices=["auto", *KV_BYTES], default="auto")
    parser.add_argument("--max-model-len", type=int, help="default: the model's")
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--no-async-scheduling", action="store_true")
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.92)
    parser.add_argument("--kv-cache-memory-bytes", type=parse_size, help="given, not left over")
    parser.add_argument("--weights", type=parse_size, help="of the whole model")
    parser.add_argument(
        "--other", type=parse_size, default=3 * GIB, help="activations, CUDA graphs"
    )
    parser.add_argument("--json", action="store_true", help="the figures, for programs")
    options = parser.parse_args()
    if min(options.tp, options.pp, options.dp, options.block_size) < 1:
        parser.error("--tp, --pp, --dp and --block-size are 1 or more")
    return options


def figures(options: argparse.Namespace) -> dict[str, Any]:
    """Compute everything that is printed. Raises UnknownError."""
    from transformers import AutoConfig

    folder = checkpoint_folder(options.model)
    shape = Shape.of(AutoConfig.from_pretrained(folder))
    # vLLM serves float32 checkpoints in half precision, unless it is told not to.
    auto = "bfloat16" if shape.dtype == "float32" else shape.dtype
    dtype = auto if options.dtype == "auto" else options.dtype
    weights = weight_bytes(folder, dtype) if options.weights is None else options.weights
    plan = Plan(
        tensor_parallel_size=options.tp,
        pipeline_parallel_size=options.pp,
        kv_cache_dtype=dtype if options.kv_cache_dtype == "auto" else options.kv_cache_dtype,
        block_size=options.block_size,
        max_num_batched_tokens=options.max_num_batched_tokens,
        async_scheduling=not options.no_async_scheduling,
    )
    cache = KVCache.of(shape, plan)
    share = weights // (options.tp * options.pp)
    usable = int(options.gpu * options.gpu_memory_utilization)
    available = options.kv_cache_memory_bytes
    if available is None:
        available = max(0, usable - share - options.other)
    limit = options.max_model_len or shape.max_length
    lengths = sorted({limit, *(length for length in LENGTHS if length < limit)})
    many = sorted({options.max_num_seqs, *CONCURRENCIES})
    return {
        "model": options.model,
        "kind": _kind(shape),
        "gpus": options.tp * options.pp * options.dp,
        "replicas": options.dp,
        "weights": weights,
        "weights_a_gpu": share,
        "usable_a_gpu": usable,
        "kv_cache_bytes": available,
        "num_gpu_blocks": available // cache.bytes_a_block,
        "kv_cache_size_tokens": int(cache.requests(available, limit) * limit),
        "kv_bytes_a_token": cache.bytes_a_block * cache.full_groups / cache.block_size,
        "max_model_len": limit,
        "requests_at_length": {n: cache.requests(available, n) for n in lengths},
        "length_at_requests": {n: cache.longest(available, n, limit) for n in many},
        "max_num_seqs": options.max_num_seqs,
    }


def _kind(shape: Shape) -> str:
    latent = "a latent vector (MLA)" if shape.latent else f"{shape.kv_heads} KV heads"
    sliding = shape.layers.count(SLIDING)
    window = f", {sliding} of them with a window of {shape.window}" if sliding else ""
    return f"{len(shape.layers)} layers, {latent}{window}, {shape.dtype}"


def table(found: Mapping[str, Any]) -> str:
    """Return the figures as text to read."""
    gib = {name: f"{found[name] / GIB:.2f} GiB" for name in found if isinstance(found[name], int)}
    lines = [
        f"{found['model']}: {found['kind']}",
        f"engines: {found['replicas']}, GPUs: {found['gpus']}",
        "",
        f"weights              {gib['weights']}, {gib['weights_a_gpu']} on each GPU",
        f"memory for vLLM      {gib['usable_a_gpu']} on each GPU",
        f"KV cache             {gib['kv_cache_bytes']} on each GPU, "
        f"{found['num_gpu_blocks']} blocks, {found['kv_cache_size_tokens']} tokens",
        f"a token of context   {found['kv_bytes_a_token'] / 1024:.1f} KiB on each GPU",
        "",
        "of each engine:   tokens a request   requests at once",
    ]
    for length, requests in found["requests_at_length"].items():
        bound = f"{requests:.1f}"
        if requests > found["max_num_seqs"]:
            bound += f" (max_num_seqs: {found['max_num_seqs']})"
        lines.append(f"                  {length:16}   {bound}")
    lines += ["", "of each engine:   requests at once   tokens a request, at most"]
    for requests, length in found["length_at_requests"].items():
        lines.append(f"                  {requests:16}   {length}")
    if not found["requests_at_length"][found["max_model_len"]] >= 1:
        lines += ["", "Not one request of the longest length fits: vLLM would refuse to start."]
    return "\n".join(lines)


def main() -> int:
    """Print what fits; return 1, after an error, if it cannot be computed."""
    options = parse()
    try:
        found = figures(options)
    except (UnknownError, OSError, ValueError) as error:
        print(f"size.py: {options.model}: {error}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
