"""The backend's seam to vLLM: the only modules of the backend that use what vLLM does not document.

- `messages`: the structs that cross the process boundary to vLLM's engine core, their encoding, and vLLM's enums.
- `core`: AsyncLLM's engine core client: processes, outputs, requests, worker calls.
- `requests`: rendering, validation and splitting of requests, as AsyncLLM does them.
- `arguments`: the command line of `vllm serve`, plug-ins, the platform and its processors.

tests/backend/test_vllm_seam.py compares the signature of every name used here with the one expected and reports each
name that moved. It also refuses imports of undocumented vLLM modules anywhere else in the backend.
"""
