"""Serve vLLM's AsyncLLM as a decoupled Triton Python-backend model.

The life of a request, and the module that holds each step:

1. decode    ``decoding``      Triton's tensors become one typed ``GenerationRequest``
2. tokenize  ``rendering``     vLLM's renderer turns the prompt into token ids
3. generate  ``work``          the request joins the engine's batch; deltas come back
4. send      ``streaming``     sender threads turn deltas (``delta``) into responses (``outputs``)
5. finish    ``streaming``     the last response carries the FINAL flag, exactly once

Imports go one way: ``errors`` → ``tensors``, ``delta`` → ``outputs`` → ``generation`` →
``settings``, ``engine_args``, ``shared_engine`` → ``sampling``, ``pooling``, ``prompts`` →
``decoding`` → ``streaming`` → ``cancellation``, ``event_loop``, ``openai_server`` → ``drain``,
``rendering``, ``launch`` → ``supervision``, ``service`` → ``engine``.
The engine is in five parts: ``launch`` (what it is to be), ``engine_life`` (one life of it),
``supervision`` (the lives, one after the other), ``service`` (what opens each of them to requests),
``engine`` (what requests see).
Where an engine runs say ``placement`` (which GPUs), ``instances`` (whose front end a process is),
``parallelism`` (whether the GPUs are there) and ``cluster`` with ``machines`` and ``ray_cluster``
(whether the other machines are); ``launch`` asks them.
What guards a request stands beside them and imports little: ``admission`` (who may enter),
``deadline`` (for how long), ``grammar_limit`` (with what), ``drain`` (until when).
The files ``vllm_*`` are the ones that import vLLM: ``vllm_api`` for all, and one for each feature
that could be deleted. The others import them inside functions, so that nothing here imports vLLM
when it is itself imported.
"""
