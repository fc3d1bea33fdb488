"""`python -m bench.fast_path streams|requests --repeats N`: a table of processor time, with and without each part.

One server in Triton's place, whose tokens are free, and one front end for each variant. The variants take turns, so
that what else the machine does meanwhile meets all of them. The figure is user + system time of the front end's process.
"""

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from bench.child import Child

VARIANTS = {
    "streams": ["-", "shortcut", "shortcut,stamps", "shortcut,stamps,stamped"],
    "requests": ["-", "short_prompts", "put_first", "short_prompts,put_first"],
}
CONCURRENCY = 64
START_S = 120.0


@dataclass
class FrontEnd:
    variant: str
    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return times.user + times.system


@contextmanager
def front_end(variant: str, triton_url: str, folder: Path) -> Iterator[FrontEnd]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["bench.fast_path.frontend", variant, "--triton-url", triton_url, "--port", str(port)]
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)
    try:
        yield FrontEnd(variant, port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def wait_ready(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise TimeoutError(f"no front end on port {port}")


async def ask(port: int, path: str, body: dict, times: int = 1) -> int:
    """Ask over one connection, one request after the other; returns the number of events or answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    payload = json.dumps(body).encode()
    found = 0
    for _ in range(times):
        headers = f"host: x\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}"
        writer.write(f"POST {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + payload)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b" 200 " not in answer:
            raise RuntimeError(answer.decode())
        if b"content-length: " in answer:
            await reader.readexactly(int(answer.split(b"content-length: ")[1].split(b"\r\n")[0]))
            found += 1
            continue
        while size := int(await reader.readline(), 16):
            found += (await reader.readexactly(size + 2)).count(b"data: {")
        await reader.readline()
    writer.close()
    return found


async def load(port: int, kind: str, stream: bool, max_tokens: int, times: int) -> int:
    prompt = "The river is long, and nobody who lives on it has seen both of its ends. Tell me about the river, please."
    what = {"messages": [{"role": "user", "content": prompt}]} if kind == "chat" else {"prompt": prompt}
    body = {"model": "tiny", **what, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream, "temperature": 0}
    path = "/v1/chat/completions" if kind == "chat" else "/v1/completions"
    return sum(await asyncio.gather(*(ask(port, path, body, times) for _ in range(CONCURRENCY))))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=VARIANTS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    step_s = 0.025 if arguments.what == "streams" else 0.005
    is_stream = arguments.what == "streams"
    # (kind, tokens, requests one after the other on each connection)
    loads = (
        [(kind, tokens, 192 // tokens) for kind in ("chat", "completion") for tokens in (64, 192)]
        if is_stream
        else [(kind, tokens, 10) for kind in ("chat", "completion") for tokens in (1, 16)]
    )
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonlive-fast-path-")))
        # Triton's stand-in is a process of its own, beside the clients' (this one).
        triton = stack.enter_context(Child("bench.fast_path.serve", [str(step_s)], {}, folder / "triton.log"))
        url = triton.ask({})
        ends = [stack.enter_context(front_end(v, url, folder)) for v in VARIANTS[arguments.what]]
        for end in ends:
            wait_ready(end.port)
        for repeat in range(-1, arguments.repeats):
            for kind, tokens, times in loads:
                for end in ends if repeat % 2 else reversed(ends):
                    before = end.cpu_s()
                    events = asyncio.run(load(end.port, kind, is_stream, tokens, times if repeat >= 0 else 1))
                    spent = end.cpu_s() - before
                    if repeat < 0:
                        continue  # warm-up
                    count = CONCURRENCY * times * (tokens if is_stream else 1)
                    name = f"{kind} {tokens} {end.variant}"
                    figures.setdefault(name, []).append(spent / count * 1e6)
                    figures.setdefault(f"{name} events", []).append(events / count)
            arguments.output.write_text(json.dumps(figures))
    for kind, tokens, _ in loads:
        base = statistics.median(figures[f"{kind} {tokens} -"])
        for variant in VARIANTS[arguments.what]:
            values = figures[f"{kind} {tokens} {variant}"]
            median = statistics.median(values)
            events = statistics.median(figures[f"{kind} {tokens} {variant} events"])
            print(
                f"{kind:10} {tokens:4} without {variant:26} {median:8.1f} us ({min(values):.1f} to {max(values):.1f})"
                f" {median / base - 1:+7.1%}  {events:.2f} events each",
                flush=True,
            )


if __name__ == "__main__":
    main()
