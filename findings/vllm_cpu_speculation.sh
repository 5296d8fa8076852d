#!/usr/bin/env bash
# vLLM 0.32.0 on a CPU: speculative decoding loses the sampling parameters of a draft's tokens.
#
# Before it samples, the rejection sampler gives each token of a draft the temperature, top_p and
# top_k of its request, with the kernel `expand_kernel`. The CPU's version of it in
# vllm/utils/cpu_triton_utils.py passes a copy of its output to the native code if that is not of
# int64: temperature and top_p are float32, top_k is int32. So the output stays as it was, which is
# memory that was never written, and each token is sampled with whatever it held. Greedy requests
# are not affected.
#
# Output seen on 2026-11-29:
#   int64: [5, 5, 7] as expected
#   int32: [-1, -1, -1] not written
#   float32: [-1.0, -1.0, -1.0] not written
#
# Downloads vLLM's wheel for CUDA (330 MB), which has that file too, into a temporary folder and runs
# that one file. A few lines of Python stand for torch and for the native code: no engine, no model.
# Exit code 1 when the behaviour differs.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps numpy==2.2.6
"$folder/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --dest "$folder" vllm==0.32.0
"$folder/venv/bin/python" - "$folder" <<'EOP'
import importlib.util
import sys
import zipfile
from pathlib import Path
from unittest.mock import MagicMock

import numpy

FILE = "vllm/utils/cpu_triton_utils.py"
folder = Path(sys.argv[1])
(wheel,) = folder.glob("vllm-*.whl")
zipfile.ZipFile(wheel).extract(FILE, folder)


class Tensor:
    """A stand-in for torch's: to() copies if the type differs, as torch's does."""

    def __init__(self, values, dtype):
        self.values, self.dtype = numpy.array(values, dtype), dtype

    def to(self, dtype):
        return self if dtype == self.dtype else Tensor(self.values, dtype)


def expand(output, given, ends, replace_from, replace_to):
    """Write each value as often as its tokens, as the native code does."""
    start = 0
    for value, end in zip(given.values, ends.values):
        output.values[start:end] = replace_to if value == replace_from else value
        start = end


torch = MagicMock(int64="int64")
torch.ops._C.expand_kernel_impl = expand
sys.modules["torch"] = torch
spec = importlib.util.spec_from_file_location("cpu_triton_utils", folder / FILE)
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)

failed = False
for dtype in ("int64", "int32", "float32"):
    output = Tensor([-1, -1, -1], dtype)
    kernels._expand_kernel_impl(output, Tensor([5, 7], dtype), Tensor([2, 3], "int32"), 0, 0)
    written = output.values.tolist() == [5, 5, 7]
    failed |= written != (dtype == "int64")
    print(f"{dtype}: {output.values.tolist()} {'as expected' if written else 'not written'}")
sys.exit(failed)
EOP
