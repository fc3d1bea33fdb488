"""Send random requests to Triton's two ports, and count the answers.

python -m tests.faults.native_fuzz --http 127.0.0.1:8000 --grpc 127.0.0.1:8001 --count 5000 --seed 1
"""

import argparse
import asyncio
import itertools
import sys
from collections import Counter
from typing import Any

import httpx
import tritonclient.grpc.aio as grpcclient

from tests.faults.random_requests import RandomRequest, RandomRequests
from tritonlive.wire.error_codes import ErrorCode, decode_error

# Triton 2.51 answers 500 to JSON that it cannot parse, or of another type than the tensor. No model sees it.
TRITON_JSON = ("failed to parse the request JSON buffer", "Unable to parse", "Invalid escape")
IN_FLIGHT = 12
TIMEOUT_S = 60.0


class Report:
    """Answers by door and status, and the requests whose answer is none of the model's or Triton's refusals."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.bad: list[str] = []

    def note(self, door: str, status: str, request: RandomRequest, text: str) -> None:
        if status == "500" and any(words in text for words in TRITON_JSON):
            status = "500 (Triton's JSON parser)"
        self.counts[f"{door} {status}"] += 1
        if status in ("500", "INTERNAL", "timeout", "broken"):
            self.bad.append(f"{door} {status}: {text[:300]!r} for {describe(request)}")

    def __str__(self) -> str:
        return "\n".join(f"{number:6} {status}" for status, number in sorted(self.counts.items()))


def describe(request: RandomRequest) -> str:
    if request.body is not None:
        return f"{request.model} {request.body[:300]}"
    tensors = {
        each.name(): (each.datatype(), each.shape(), (each._raw_content or b"")[:100]) for each in request.inputs
    }
    return f"{request.model} {tensors} {request.parameters}"


async def send_http(client: httpx.AsyncClient, request: RandomRequest, report: Report) -> None:
    path = "generate_stream" if request.stream else "generate"
    url = f"/v2/models/{request.model}/{path}"
    try:
        answer = await client.post(url, content=(request.body or "").encode("utf-8", "surrogatepass"))
    except httpx.TimeoutException:
        report.note("http", "timeout", request, "")
    except httpx.TransportError as error:
        report.note("http", "broken", request, repr(error))
    else:
        report.note("http", http_status(answer), request, answer.text)


def http_status(answer: httpx.Response) -> str:
    """The status; with the error's code, if a stream that began well ends in an error."""
    _, begun, error = answer.text.rpartition('data: {"error":"')
    if not begun:
        return str(answer.status_code)
    code = decode_error(error.removesuffix('"}\n\n')).code
    return "INTERNAL" if code == ErrorCode.INTERNAL or "INTERNAL" in error else f"{answer.status_code} then an error"


async def send_grpc(client: Any, request: RandomRequest, report: Report) -> None:
    async def one() -> Any:
        yield {"model_name": request.model, "inputs": list(request.inputs), "parameters": request.parameters}

    status, text = "no answer", ""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            async for _, error in client.stream_infer(one()):
                status = "ok"
                if error is not None:
                    text = error.message()
                    status = decode_error(text).code or ("INTERNAL" if "INTERNAL" in text else "refused")
    except TimeoutError:
        status = "timeout"
    except grpcclient.InferenceServerException as error:
        status, text = str(error.status()), error.message()
    report.note("grpc", str(status), request, text)


async def fuzz(http: str, grpc: str, seed: int, first: int, count: int) -> Report:
    """Send requests number `first` to `first + count - 1` of this seed, a few at a time."""
    report, places = Report(), asyncio.Semaphore(IN_FLIGHT)
    async with (
        httpx.AsyncClient(base_url=f"http://{http}", timeout=TIMEOUT_S) as http_client,
        grpcclient.InferenceServerClient(grpc) as grpc_client,
        asyncio.TaskGroup() as tasks,
    ):

        async def send(request: RandomRequest) -> None:
            async with places:
                if request.body is not None:
                    await send_http(http_client, request, report)
                else:
                    await send_grpc(grpc_client, request, report)

        for request in itertools.islice(RandomRequests(seed), first, first + count):
            await places.acquire()
            places.release()
            tasks.create_task(send(request))
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", default="127.0.0.1:8000")
    parser.add_argument("--grpc", default="127.0.0.1:8001")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    options = parser.parse_args()
    report = asyncio.run(fuzz(options.http, options.grpc, options.seed, options.first, options.count))
    sys.stdout.write(f"{report}\n" + "\n".join(report.bad) + "\n")


if __name__ == "__main__":
    main()
