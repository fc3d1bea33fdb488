"""Rows 55 and 56: a full disk and full shared memory, each in small file systems of the stack's own."""

import contextlib
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sync import SyncError, WeightSync
from tests.faults.slow.served import API_KEY, CONTROL_KEY, Served
from tests.stack.conftest import wait_until
from tests.stack.lora import CONFIG, adapter

logger = logging.getLogger(__name__)

LARGE_TOKENS = 1900
OWN_MEMORY = (
    *("unshare", "--mount", "--propagation", "private", "sh", "-c"),
    'mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size=16m tmpfs "$1" && shift && exec "$@"',
    "sh",
)


@pytest.fixture(scope="module")
def served(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A stack whose shared memory, logs and temporary files are in small file systems."""
    if shutil.which("unshare") is None or subprocess.run([*OWN_MEMORY, "/mnt", "true"], check=False).returncode:
        pytest.skip("this user may not mount file systems")
    folder = tmp_path_factory.mktemp("small")
    small = folder / "logs"
    small.mkdir()
    served = Served(
        tiny_model_dir,
        folder,
        *("--enable-lora", "--max-lora-rank", "16"),
        within=(*OWN_MEMORY, str(small)),
        # Elsewhere: what vLLM compiles for the first logprobs takes more than these file systems have.
        env={"TMPDIR": str(small), "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")},
    )
    served.wait_ready()
    yield served
    served.close()


@contextlib.contextmanager
def filled(served: Served, folder: Path) -> Iterator[None]:
    """Fill the file system of `folder`, as the stack sees it."""
    folder = Path(f"/proc/{served.process.pid}/root") / folder.relative_to("/")
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        while os.statvfs(folder).f_bavail:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest.mark.row(55)
def test_a_full_disk_costs_the_log_and_an_adapters_push_only(served: Served) -> None:
    with WeightSync(served.frontend_url, control_key=CONTROL_KEY, timeout=60) as trainer:
        with filled(served, served.logs):
            assert [served.complete().status_code for _ in range(3)] == [200] * 3
            with pytest.raises(SyncError, match="No space left on device"):
                trainer.push_adapter("mine", adapter(1), "v1", config=CONFIG)
            assert served.complete().status_code == 200
        trainer.push_adapter("mine", adapter(1), "v1", config=CONFIG)
    assert served.complete(model="mine").status_code == 200


@pytest.mark.row(56)
def test_full_shared_memory_refuses_what_needs_more_of_it_and_nothing_hangs(served: Served) -> None:
    with filled(served, Path("/dev/shm")):
        prompt = list(range(3, 3 + LARGE_TOKENS))
        answer = served.complete(prompt=prompt, n=16, temperature=1, logprobs=20, prompt_logprobs=20)
        logger.info("with full shared memory: %d %s", answer.status_code, answer.text[:200])
        assert answer.status_code in (200, 503), answer.text
        assert served.complete().status_code in (200, 503)
    wait_until(lambda: served.complete().status_code == 200, 60)
    assert API_KEY not in served.said.read_text()
