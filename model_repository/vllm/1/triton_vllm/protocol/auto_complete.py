"""Complete a config.pbtxt, so that a folder made for Triton's vLLM backend loads.

Triton runs this in a separate process before the model's, so it must be quick.
"""

from __future__ import annotations

from typing import Any

from triton_vllm.protocol.outputs import OUTPUT_TENSORS
from triton_vllm.protocol.schema import INPUTS
from triton_vllm.protocol.tensors import Tensor


def complete_config(config: Any) -> Any:
    """Add the missing declarations to ``config``, a ``pb_utils.ModelConfig``; return it.

    Existing declarations stay unchanged; the model checks them when it is initialized.
    Raises ValueError for a ``max_batch_size`` above 0, because the engine batches.
    """
    declared = config.as_dict()
    inputs = {tensor["name"] for tensor in declared["input"]}
    outputs = {tensor["name"] for tensor in declared["output"]}
    for tensor in INPUTS:
        if tensor.name not in inputs:
            config.add_input({**_as_config(tensor), "optional": True})
    for tensor in OUTPUT_TENSORS:
        if tensor.name not in outputs:
            config.add_output(_as_config(tensor))
    if "model_transaction_policy" not in declared:
        config.set_model_transaction_policy({"decoupled": True})
    config.set_max_batch_size(0)
    return config


def _as_config(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{tensor.datatype}",
        "dims": tensor.dims,
    }
