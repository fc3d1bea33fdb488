"""The installed vLLM's vllm-rs is one that can be fetched."""

from tritonlive.launch.rust_binary import SHA256, version


def test_the_installed_vllm_has_one_for_each_machine() -> None:
    assert {machine for known, machine in SHA256 if known == version()} == {"x86_64", "aarch64"}
