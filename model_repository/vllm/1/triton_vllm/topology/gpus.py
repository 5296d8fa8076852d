"""How many GPUs the engine arguments ask for, and whether they are there: before anything loads.

The arguments are read here, and not from vLLM's ``ParallelConfig``, which has the same numbers but
only exists once the model's files have been read. Its own check (0.26 to 0.33) counts the GPUs of
one data-parallel rank, so two ranks that need four GPUs pass it on a node with two, and its error
has four lines that do not name the arguments. A worker then fails minutes later.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from triton_vllm.errors import SettingsError

_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")


@dataclass(frozen=True, slots=True)
class Parallelism:
    """What one engine consists of.

    ``here`` is the number of workers, each with a GPU, of this machine, None where Ray places them.
    ``is_spread``: vLLM itself joins workers or engine cores of other machines. ``text`` says which
    arguments ask for that.
    """

    here: int | None
    is_spread: bool
    text: str

    @classmethod
    def of(cls, args: Any) -> Parallelism:
        """Read vLLM's ``AsyncEngineArgs``, as it reads them itself (``create_engine_config``)."""
        sizes = {name: getattr(args, name, 1) for name in _SIZES}
        sizes["data_parallel_size"] = engines = args.data_parallel_size
        in_engine = math.prod(sizes[name] for name in _SIZES)
        engines_here = engines
        given = {name: size for name, size in sizes.items() if size > 1}
        if args.distributed_executor_backend == "ray":
            return cls(None, is_spread=False, text="")
        if args.data_parallel_rank is not None or args.data_parallel_external_lb:
            engines_here = 1
        elif args.data_parallel_size_local is not None:
            engines_here = given["data_parallel_size_local"] = args.data_parallel_size_local
        here = in_engine * engines_here
        if args.nnodes > 1:
            here = in_engine * engines // args.nnodes
            given["nnodes"] = args.nnodes
        text = ", ".join(f'"{name}": {size}' for name, size in given.items())
        return cls(here, args.nnodes > 1 or engines_here < engines, text)


def check_gpus(
    parallelism: Parallelism, devices: str, count: Callable[[], int | None], where: str
) -> None:
    """Raise SettingsError unless this machine has the GPUs that the arguments in ``where`` ask for.

    ``devices`` are those that config.pbtxt gives to the engine, as in CUDA_VISIBLE_DEVICES; empty
    where it does not say. ``count`` tells how many this process sees, None where vLLM runs on no
    GPUs.
    """
    needed = parallelism.here
    if needed is None:
        if devices:
            raise SettingsError(
                f"{where}: Ray places the engine by itself, and config.pbtxt chooses GPUs for it "
                f"({devices}): use one of the two"
            )
        return
    asks = f"{where}: the engine arguments ask for {needed} GPU" + ("s" if needed != 1 else "")
    asks += f" ({parallelism.text})" if parallelism.text else ""
    if devices and (given := len(devices.split(","))) != needed:
        raise SettingsError(f"{asks}, and config.pbtxt gives {given} to each engine ({devices})")
    seen = count()
    if seen is not None and seen < needed:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        only = "" if visible is None else f' (CUDA_VISIBLE_DEVICES is "{visible}")'
        raise SettingsError(f"{asks}, and {seen} can be seen here{only}")
