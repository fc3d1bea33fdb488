"""`python -m bench.offline MODEL ARGS…`: vLLM's offline `LLM` with the engine arguments the servers have."""

import sys
import time
from collections.abc import Callable
from typing import Any

from bench.child import serve


def start() -> Callable[[dict[str, Any]], Any]:
    """Start the engine; returns what answers `chat` and `load`."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    extension = ("--worker-extension-cls", "bench.load_timer.LoadTimer")
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(["--model", *sys.argv[1:], *extension])))

    def answer(question: dict[str, Any]) -> Any:
        if question["what"] == "chat":
            return chat(llm, question["conversations"], question["max_tokens"])
        # Timed where it happens, in the worker: no call to it is counted.
        return max(llm.collective_rpc("time_load"))

    return answer


def chat(llm: Any, conversations: list[Any], max_tokens: int) -> dict[str, float]:
    """One call for all conversations; the figures a server's client has, as far as they apply."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, seed=0, ignore_eos=True, max_tokens=max_tokens)
    began = time.perf_counter()
    outputs = llm.chat(conversations, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"seconds": seconds, "tokens/s": tokens / seconds, "completion tokens": float(tokens)}


if __name__ == "__main__":
    serve(start)
