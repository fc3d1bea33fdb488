"""Frames: the trainer packs tensors, a worker reassembles them, and a mismatch is refused by name."""

import numpy as np
import pytest
import torch

from sync import SourceError, TransferError
from sync.transport.frames import FRAME_BYTES, HEADER_BYTES, MAX_PARTS, read_header, write_header
from sync.transport.layout import Layout
from sync.transport.messages import TransportName
from sync.transport.trainer.frame_sender import FrameSender
from sync.transport.trainer.frame_writer import FrameWriter
from sync.transport.worker.assembler import Assembler
from sync.weights.digest import tensor_digest
from sync.weights.findings import Findings
from sync.weights.weight_source import ParamMeta

Tensors = dict[str, torch.Tensor]


class Recorder(FrameSender):
    """Records sent frames. It has one frame to fill, like a ring with one slot."""

    transport = TransportName.GLOO

    def __init__(self) -> None:
        self.sent: list[np.ndarray] = []
        self._frame = np.empty(FRAME_BYTES, dtype=np.uint8)

    def free_frame(self) -> np.ndarray:
        self._frame[:] = 0xEE  # what was sent before must not be needed any more
        return self._frame

    def send(self, num_bytes: int) -> None:
        self.sent.append(self._frame[:num_bytes].copy())

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def metas_of(tensors: Tensors) -> list[ParamMeta]:
    return [ParamMeta.of(name, tensor) for name, tensor in tensors.items()]


def pack(tensors: Tensors, order: list[str] | None = None) -> tuple[list[np.ndarray], list[int]]:
    """The frames, and the digests in the order of `tensors`."""
    recorder = Recorder()
    writer = FrameWriter(metas_of(tensors), recorder)
    for name in order or list(tensors):
        writer.write(name, tensors[name])
    return recorder.sent, writer.finish()


def assemble(tensors: Tensors, frames: list[np.ndarray]) -> tuple[Tensors, Findings]:
    layout = Layout(metas_of(tensors))
    memory = torch.full((layout.num_bytes,), 0xAB, dtype=torch.uint8)
    assembler = Assembler(layout, memory)
    for frame in frames:
        assembler.add(frame)
    return dict(layout.view_tensors(memory)), assembler.finish()


def sized(*sizes: int) -> Tensors:
    generator = torch.Generator().manual_seed(1)
    return {
        str(number): torch.randint(0, 256, (size,), generator=generator).to(torch.uint8)
        for number, size in enumerate(sizes)
    }


ROOM = FRAME_BYTES - HEADER_BYTES


@pytest.mark.parametrize(
    "sizes",
    [
        (0,),
        (1,),
        (ROOM,),
        (ROOM - 1, 1, 1),
        (ROOM + 1, 63, 64, 65),
        (3, 2 * ROOM, 5),
        (1,) * (MAX_PARTS + 1),
        (ROOM - 10, 100),
    ],
)
def test_any_sizes_in_any_order(sizes):
    tensors = sized(*sizes)
    for order in (list(tensors), list(reversed(tensors)), list(tensors)[1::2] + list(tensors)[::2]):
        frames, digests = pack(tensors, order)
        assert all(len(frame) <= FRAME_BYTES for frame in frames)
        got, findings = assemble(tensors, frames)
        assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
        assert findings.digests == digests == [tensor_digest(tensor) for tensor in tensors.values()]


def test_large_tensors_are_split_and_small_ones_share_a_frame():
    assert len(pack(sized(2 * ROOM, ROOM))[0]) == 3
    assert len(pack(sized(*[100] * 500))[0]) == 1
    assert pack(sized(0))[0] == []


def test_all_dtypes_views_and_devices_of_the_cpu(weights):
    tensors = weights | {"transposed": torch.randn(5, 7).t(), "flags": torch.tensor([True, False])}
    got, findings = assemble(tensors, pack(tensors)[0])
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())
    assert all(findings.are_finite)


def test_a_source_may_reuse_one_buffer():
    """A gathering export reuses one buffer. A push once sent the last tensor's bytes under every name."""
    tensors = {f"layers.{number}": torch.full((1000,), float(number)) for number in range(50)}
    recorder, buffer = Recorder(), torch.empty(1000)
    writer = FrameWriter(metas_of(tensors), recorder)
    for name, tensor in tensors.items():
        writer.write(name, buffer.copy_(tensor))
    writer.finish()
    got, _ = assemble(tensors, recorder.sent)
    assert all(torch.equal(got[name], tensor) for name, tensor in tensors.items())


def test_nan_is_found_in_whatever_part_it_is():
    tensors = {"clean": torch.zeros(8), "split": torch.zeros(FRAME_BYTES), "last": torch.zeros(3)}
    tensors["split"][-1] = float("nan")
    _, findings = assemble(tensors, pack(tensors)[0])
    assert findings.are_finite == [True, False, True]


# ---- a source that does not yield what it announced ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensor", "why"),
    [
        ("x", torch.zeros(4), "x was yielded, but not announced"),
        ("a", torch.zeros(4), "a was yielded twice"),
        ("b", torch.zeros(5), r"b was announced as float32\[4\], but yielded as float32\[5\]"),
        ("b", torch.zeros(4).half(), r"b was announced as float32\[4\], but yielded as float16\[4\]"),
        ("b", torch.zeros(2, 2), r"b was announced as float32\[4\], but yielded as float32\[2, 2\]"),
    ],
)
def test_what_was_not_announced_so_is_named(name, tensor, why):
    writer = FrameWriter(metas_of({"a": torch.zeros(4), "b": torch.zeros(4)}), Recorder())
    writer.write("a", torch.zeros(4))
    with pytest.raises(SourceError, match=why):
        writer.write(name, tensor)


def test_what_is_missing_is_named_even_if_it_is_empty():
    writer = FrameWriter(metas_of({"a": torch.zeros(4), "b": torch.zeros(4), "e": torch.zeros(0)}), Recorder())
    writer.write("a", torch.zeros(4))
    with pytest.raises(SourceError, match="announced, but not yielded: b, e"):
        writer.finish()


# ---- frames that are not the trainer's ----------------------------------------------------------------------------


def frame_of(*parts: tuple[int, int, int], num_bytes: int = 256) -> np.ndarray:
    frame = np.zeros(HEADER_BYTES + num_bytes, dtype=np.uint8)
    write_header(frame, parts)
    return frame


@pytest.fixture
def assembler():
    layout = Layout([ParamMeta("a", "uint8", (128,)), ParamMeta("b", "uint8", (100,))])
    return Assembler(layout, torch.zeros(layout.num_bytes, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([(2, 1, 0)], "a part of tensor 2, but 2 were announced"),
        ([(2**32 - 1, 1, 0)], "but 2 were announced"),
        ([(0, 64, 64)], "bytes 64 to 128 of a, which does not go on"),  # a gap
        ([(0, 64, 0), (0, 64, 0)], "bytes 0 to 64 of a, which does not go on"),  # twice
        ([(1, 101, 0)], "bytes 0 to 101 of b"),  # beyond its end
        ([(1, 100, 2**64 - 50)], "of b, which does not go on"),
        ([(0, 128, 0), (1, 100, 0), (0, 1, 128)], "bytes 128 to 129 of a"),
    ],
)
def test_parts_that_do_not_fit_are_refused(assembler, parts, why):
    with pytest.raises(TransferError, match=why):
        assembler.add(frame_of(*parts))


def test_parts_beyond_the_frame_are_refused(assembler):
    with pytest.raises(TransferError, match="bytes 0 to 100 of b"):
        assembler.add(frame_of((0, 64, 0), (1, 100, 0), num_bytes=100))
    with pytest.raises(TransferError, match="shorter than its header"):
        assembler.add(np.zeros(100, dtype=np.uint8))


def test_what_did_not_arrive_whole_is_named(assembler):
    assembler.add(frame_of((0, 128, 0), (1, 64, 0)))
    with pytest.raises(TransferError, match="not arrived whole: b"):
        assembler.finish()


def test_a_table_is_never_longer_than_the_header():
    frame = frame_of((0, 1, 0))
    frame[:4] = 0xFF
    assert len(read_header(frame)) == MAX_PARTS
