"""What runs in the processes of vLLM's engine core, and what its fork server has to know."""

# Among the ids of requests to abort: all those of vLLM's Rust front end (scheduler.py).
RUST_REQUESTS = "triton_vllm: all requests of the Rust front end"
