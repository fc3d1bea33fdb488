"""The chunks of a stream as templates: vLLM makes each choice's first chunk, and later chunks differ in their text."""

from pydantic_core import to_json
from vllm.outputs import CompletionOutput, RequestOutput


class ChunkTemplates:
    """One template for each choice of a stream: the chunk's text before and after the piece that changes."""

    def __init__(self, field: str) -> None:
        """`field`: the name under which a chunk has its text."""
        self._key = f'"{field}":'
        self._templates: dict[int, tuple[str, str]] = {}
        self._unseen: dict[int, list[int]] = {}  # by choice: tokens whose chunks vLLM's generator did not make

    def fill(self, first_choice: int, result: RequestOutput) -> list[str] | None:
        """The chunks for a result that brings nothing but text, one for each choice in it; else None.

        Call `note_sent` for chunks that are sent.
        """
        if not all(is_plain(output) and first_choice + output.index in self._templates for output in result.outputs):
            return None
        chunks = []
        for output in result.outputs:
            before, after = self._templates[first_choice + output.index]
            chunks.append(f"{before}{to_json(output.text).decode()}{after}")
        return chunks

    def note_sent(self, first_choice: int, result: RequestOutput) -> None:
        """The chunks of `result` were made here and sent."""
        for output in result.outputs:
            self._unseen.setdefault(first_choice + output.index, []).extend(output.token_ids)

    def learn(self, first_choice: int, result: RequestOutput, chunk: str | None) -> None:
        """Make a template of `chunk`, the last one that vLLM made of `result`."""
        if chunk is None or len(result.outputs) != 1 or not is_plain(result.outputs[0]):
            return
        before, found, after = chunk.partition(f"{self._key}{to_json(result.outputs[0].text).decode()}")
        if found and self._key not in before and self._key not in after:
            self._templates[first_choice + result.outputs[0].index] = (before + self._key, after)

    def restore_tokens(self, first_choice: int, result: RequestOutput) -> None:
        """Put the tokens that vLLM's generator has not seen before those of `result`, because it counts tokens."""
        for output in result.outputs:
            if unseen := self._unseen.pop(first_choice + output.index, None):
                output.token_ids = [*unseen, *output.token_ids]


def is_plain(output: CompletionOutput) -> bool:
    """Whether `output` neither ends its choice nor lacks tokens."""
    return output.finish_reason is None and bool(output.token_ids)
