"""`python -m bench.fast_path streams|requests --repeats N`: a table of processor time, with and without each part.

A FreeTriton replaces Triton; its tokens cost almost no time. The same front end runs all variants in turn, so that
other load on the machine affects all of them. The figure is user + system time of the front end's process.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bench.child import Child

VARIANTS = {
    "streams": ["-", "disconnect", "fast_path", "fast_path,templates"],
    "requests": ["-", "short_prompts"],
}
CONCURRENCY = 64
START_S = 240.0


async def ask(port: int, path: str, body: dict, times: int = 1) -> int:
    """Send requests one after another over one connection; returns the number of events or answers."""
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
    step_s = 0.03 if arguments.what == "streams" else 0.005
    is_stream = arguments.what == "streams"
    # (kind, tokens, consecutive requests on each connection)
    loads = (
        [(kind, tokens, 1) for kind in ("chat", "completion") for tokens in (64, 192)]
        if is_stream
        else [(kind, tokens, 5) for kind in ("chat", "completion") for tokens in (1, 16)]
    )
    figures: dict[str, list[float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tritonlive-fast-path-")))
        # FreeTriton runs in its own process, apart from the clients in this one.
        triton = stack.enter_context(Child("bench.fast_path.serve", [str(step_s)], {}, folder / "triton.log"))
        url = triton.ask({})
        end = stack.enter_context(Child("bench.fast_path.frontend", [url], {}, folder / "frontend.log"))
        port = end.ask({})["port"]
        variants = VARIANTS[arguments.what]
        for repeat in range(-1, arguments.repeats):
            for kind, tokens, times in loads:
                for variant in variants if repeat % 2 else reversed(variants):
                    before = end.ask({"without": variant.split(",")})["cpu_s"]
                    events = asyncio.run(load(port, kind, is_stream, tokens, times if repeat >= 0 else 1))
                    spent = end.ask({})["cpu_s"] - before
                    if repeat < 0:
                        continue  # warm-up
                    count = CONCURRENCY * times * (tokens if is_stream else 1)
                    name = f"{kind} {tokens} {variant}"
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
