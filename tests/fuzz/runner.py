"""Send the requests, and judge what comes back."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from .requests import Request, Requests

TIMEOUT_S = 60.0
NO_FAULT = (501, 503)
"""Of the statuses from 500 on: the model does not have this, and there is no engine now."""
TRACEBACK = b"Traceback (most recent call last)"
HEALTH_EVERY = 100


@dataclass
class Findings:
    """What a run has seen."""

    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many answers of a status (or a client's exception) each route gave."""
    faults: list[str] = field(default_factory=list)
    tracebacks: int = 0
    """Lines that begin one, added to the logs meanwhile."""

    @property
    def is_clean(self) -> bool:
        return not self.faults and not self.tracebacks


@dataclass
class Log:
    """A log file, from the end that it has now."""

    path: Path

    def __post_init__(self) -> None:
        self._start = self.path.stat().st_size

    def tracebacks(self) -> int:
        """How many have been written since."""
        with self.path.open("rb") as log:
            log.seek(self._start)
            return log.read().count(TRACEBACK)


async def run(
    url: str,
    *,
    key: str | None,
    seed: int,
    numbers: Iterable[int],
    concurrency: int,
    logs: list[Path],
    progress: Callable[[], None],
) -> Findings:
    """Send the requests of these numbers, `concurrency` of them at a time."""
    findings = Findings()
    watched = [Log(path) for path in logs]
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=TIMEOUT_S) as client:
        document = (await client.get("/openapi.json")).raise_for_status().json()
        model = (await client.get("/v1/models")).raise_for_status().json()["data"][0]["id"]
        requests = Requests(document, model, seed)
        waiting = map(requests.make, numbers)

        async def send_all() -> None:
            for request in waiting:
                await _send(client, request, findings)
                if request.number % HEALTH_EVERY == 0:
                    await _check_health(client, request, findings)
                progress()

        await asyncio.gather(*(send_all() for _ in range(concurrency)))
        await _check_health(client, None, findings)
    findings.tracebacks = sum(log.tracebacks() for log in watched)
    return findings


async def _send(client: httpx.AsyncClient, request: Request, findings: Findings) -> None:
    try:
        answer = await client.request(
            request.route.method,
            request.path,
            params=request.params,
            content=request.content,
            headers={"Content-Type": request.content_type} if request.content is not None else {},
        )
    except httpx.InvalidURL:
        return  # no client sends it
    except httpx.HTTPError as error:
        findings.statuses[request.route.name, type(error).__name__] += 1
        findings.faults.append(f"{_title(request)}: {error!r}")
        return
    findings.statuses[request.route.name, str(answer.status_code)] += 1
    if answer.status_code >= 500 and answer.status_code not in NO_FAULT:
        findings.faults.append(f"{_title(request)}: {answer.status_code} {answer.text[:300]}")


async def _check_health(client: httpx.AsyncClient, after: Request | None, findings: Findings) -> None:
    try:
        status = (await client.get("/health")).status_code
    except httpx.HTTPError as error:
        status = repr(error)
    if status != httpx.codes.OK:
        findings.faults.append(f"/health after {after.number if after else 'the last'}: {status}")


def _title(request: Request) -> str:
    body = (request.content or b"").decode(errors="replace")
    return f"#{request.number} {request.route.name} {body[:300]}"
