"""Serve vLLM's AsyncLLM as a decoupled Triton Python-backend model.

The life of a request, and the module that holds each step:

1. decode    ``protocol.decode``           Triton's tensors become one typed ``GenerationRequest``
2. tokenize  ``vllm_api.render``           vLLM's renderer turns the prompt into token ids
3. generate  ``protocol.requests``         the request joins the engine's batch; deltas come back
4. send      ``protocol.stream``           sender threads turn deltas into Triton responses
5. finish    ``protocol.stream``           the last response carries the FINAL flag, exactly once

Each package answers one question and imports only those before it in this list (a test asserts it):

``errors``, ``log``, ``counters``, ``event_loop``   the ground floor
``config``       what did the operator write?
``limits``       who may enter, for how long, and with what?
``topology``     which processes, CPUs, GPUs and nodes serve one engine?
``protocol``     what does a client say? Triton's tensors in, deltas out
``vllm_api``     the only package that imports vLLM
``openai_api``   OpenAI's protocol on a port of its own
``engine``       how does the engine live, and what do requests see of it?
``metrics``      what is exported to Triton's /metrics?
"""
