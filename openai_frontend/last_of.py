"""The last result of a generation, kept while vLLM reads them all."""

from collections.abc import AsyncGenerator, AsyncIterator

from vllm.outputs import RequestOutput


class LastOf:
    """Passes results on and keeps the last one, in a list."""

    def __init__(self, results: AsyncIterator[RequestOutput]) -> None:
        self.results: list[RequestOutput] = []
        self._all = results

    async def __aiter__(self) -> AsyncGenerator[RequestOutput, None]:
        async for result in self._all:
            self.results = [result]
            yield result
