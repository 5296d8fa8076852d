"""Start vLLM's engine with the arguments of the command line; print what it says of its KV cache.

A process of its own: an engine of another shape wants a process that has had none.
"""

from __future__ import annotations

import json
import sys

from vllm import LLM


def main() -> None:
    """Print one JSON object, the last line."""
    llm = LLM(**json.loads(sys.argv[1]))
    config = llm.llm_engine.vllm_config
    cache = config.cache_config
    said = {
        "num_gpu_blocks": cache.num_gpu_blocks,
        "block_size": cache.block_size,
        "kv_cache_size_tokens": cache.kv_cache_size_tokens,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "max_concurrent_batches": config.max_concurrent_batches,
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
