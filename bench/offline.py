"""`python -m bench.offline MODEL ARGS…`: vLLM's offline `LLM` with the servers' engine arguments."""

import sys
import time
from collections.abc import Callable
from typing import Any

from bench.child import serve


def start() -> Callable[[dict[str, Any]], Any]:
    """Start the engine; returns the function that answers `chat` and `load`."""
    from vllm import LLM
    from vllm.engine.arg_utils import EngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    extension = ("--worker-extension-cls", "bench.load_timer.LoadTimer")
    llm = LLM.from_engine_args(EngineArgs.from_cli_args(parser.parse_args(["--model", *sys.argv[1:], *extension])))

    def answer(question: dict[str, Any]) -> Any:
        if question["what"] == "chat":
            return chat(llm, question["conversations"], question["max_tokens"])
        # The worker measures the time, so it excludes the call to the worker.
        return max(llm.collective_rpc("time_load"))

    return answer


def chat(llm: Any, conversations: list[Any], max_tokens: int) -> dict[str, float]:
    """Answer all conversations in one call; returns those figures of a server's client that apply."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0.0, seed=0, ignore_eos=True, max_tokens=max_tokens)
    began = time.perf_counter()
    outputs = llm.chat(conversations, params, use_tqdm=False)
    seconds = time.perf_counter() - began
    tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    return {"seconds": seconds, "tokens/s": tokens / seconds, "completion tokens": float(tokens)}


if __name__ == "__main__":
    serve(start)
