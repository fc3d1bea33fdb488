"""What a Rust process is told, made with the real vLLM from the tiny model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from vllm.v1.engine import EngineCoreReadyResponse

from openai_frontend.options import Options
from openai_frontend.rust import bootstrap
from openai_frontend.vllm_seam import vllm_version
from tests.frontend.test_engine_info import ENGINE_INFO


@pytest.fixture
def options(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Options:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("TRITONLIVE_API_KEY", "secret")
    info = replace(
        ENGINE_INFO,
        vllm_version=vllm_version,
        model=str(tiny_model_dir),
        engine_argv=["--model", str(tiny_model_dir), "--max-num-seqs", "7", "--dtype", "float32"],
        served_model_name=["tiny"],
        max_model_len=1024,
        num_gpu_blocks=99,
    )
    argv = ["--enable-scale-out", "--tool-call-parser", "hermes", "--lora-modules", "x=/y"]
    return Options(["a:8001", "b:8001"], argv, 1, info)


def test_arguments_are_vllms_without_keys_and_control(options: Options, tiny_model_dir: Path) -> None:
    told = json.loads(bootstrap.make(options).arguments)
    assert (told["model_tag"], told["served_model_name"]) == (str(tiny_model_dir), ["tiny"])
    assert (told["enable_scale_out"], told["tool_call_parser"]) == (True, "hermes")
    assert told["shutdown_timeout"] == options.limits.drain_s
    assert not bootstrap.NOT_PASSED_ON & told.keys()
    assert "secret" not in json.dumps(told)


def test_each_replica_is_an_engine_of_its_own(options: Options) -> None:
    made = printed(options)
    first, second = (msgspec.msgpack.decode(each, type=EngineCoreReadyResponse) for each in made.ready_responses)
    assert (first.data_parallel_rank, second.data_parallel_rank) == (0, 1)
    assert (first.max_model_len, first.num_gpu_blocks, first.max_num_seqs) == (1024, 99, 7)
    assert (first.dtype, first.vllm_version, first.supports_lora) == ("float32", vllm_version, False)


def printed(options: Options) -> bootstrap.Bootstrap:
    """What a process of its own makes."""
    options.to_environment()
    command = [sys.executable, "-m", "openai_frontend.rust.bootstrap"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=bootstrap.Bootstrap)


def test_an_argument_that_vllm_lacks_is_named(options: Options) -> None:
    with pytest.raises(ValueError, match="--no-such"):
        bootstrap.make(replace(options, vllm_argv=["--no-such"]))
