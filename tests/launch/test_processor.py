from pathlib import Path

import pytest

from tritonlive.launch import processor

ZEN2 = "processor\t: 0\nmodel name\t: AMD EPYC 7742\nflags\t\t: fpu sse4_2 avx f16c avx2 bmi2\n"
CASCADE_LAKE = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512dq avx512_vnni\nbugs\t\t: spectre_v1\n"
SAPPHIRE_RAPIDS = "processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n"
# It has the name outside of the line with its flags.
NAMED = "processor\t: 0\nmodel name\t: avx512f\nflags\t\t: fpu avx2 avx512fake\n"
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd evtstrm sve bf16 i8mm\nCPU architecture: 8\n"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(ZEN2, True), (NAMED, True), (CASCADE_LAKE, False), (SAPPHIRE_RAPIDS, False), (GRAVITON, False), ("", False)],
    ids=["zen2", "named", "cascade-lake", "sapphire-rapids", "graviton", "empty"],
)
def test_bfloat16_needs_avx512_on_x86(cpuinfo: str, expected: bool) -> None:
    assert processor.lacks_bfloat16(cpuinfo) is expected


@pytest.mark.parametrize(("distribution", "expected"), [("pytest", True), ("no-such-distribution", False)])
def test_only_the_cpu_build_computes_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(ZEN2)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor, "CPU_BUILD", distribution)
    assert processor.emulates_bfloat16() is expected


def test_a_machine_without_cpuinfo_is_left_to_vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "nothing")
    monkeypatch.setattr(processor, "CPU_BUILD", "pytest")
    assert processor.emulates_bfloat16() is False
