"""Events of a stream as stamps: made once by vLLM, and again with another piece of text in it."""

from pydantic_core import to_json
from vllm.outputs import CompletionOutput, RequestOutput


class Stamps:
    """The events of one stream by their choice, as texts before and after the piece that changes."""

    def __init__(self, field: str) -> None:
        """`field`: the name under which an event has its text."""
        self._key = f'"{field}":'
        self._stamps: dict[int, tuple[str, str]] = {}
        self._skipped: dict[int, list[int]] = {}  # tokens whose events were stamped, which vLLM has not counted

    def make(self, first_choice: int, result: RequestOutput) -> list[str] | None:
        """The events for a result that brings nothing but text, one for each choice in it; else None.

        For events that are sent call `skip`, too.
        """
        if not all(is_plain(output) and first_choice + output.index in self._stamps for output in result.outputs):
            return None
        events = []
        for output in result.outputs:
            before, after = self._stamps[first_choice + output.index]
            events.append(f"{before}{to_json(output.text).decode()}{after}")
        return events

    def skip(self, first_choice: int, result: RequestOutput) -> None:
        """The events of `result` were stamped."""
        for output in result.outputs:
            self._skipped.setdefault(first_choice + output.index, []).extend(output.token_ids)

    def learn(self, first_choice: int, result: RequestOutput, event: str | None) -> None:
        """Make a stamp of `event`, the last that vLLM made of `result`."""
        if event is None or len(result.outputs) != 1 or not is_plain(result.outputs[0]):
            return
        before, found, after = event.partition(f"{self._key}{to_json(result.outputs[0].text).decode()}")
        if found and self._key not in before and self._key not in after:
            self._stamps[first_choice + result.outputs[0].index] = (before + self._key, after)

    def restore(self, first_choice: int, result: RequestOutput) -> None:
        """Give vLLM the tokens it has not seen, for it counts them."""
        for output in result.outputs:
            if skipped := self._skipped.pop(first_choice + output.index, None):
                output.token_ids = [*skipped, *output.token_ids]


def is_plain(output: CompletionOutput) -> bool:
    return output.finish_reason is None and bool(output.token_ids)
