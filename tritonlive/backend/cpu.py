"""The engine's environment on a CPU: where vLLM's workers live, which cores they use, how malloc behaves.

Everything here becomes vLLM arguments, or environment variables that vLLM's processes inherit. On other platforms
nothing is set. Settings of the user are never overridden.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

from vllm.engine.arg_utils import AsyncEngineArgs

from .vllm_seam.arguments import LogicalCPUInfo, allowed_cpus, is_on_cpu, num_memory_nodes
from .vllm_seam.core import run_empty_step
from .vllm_seam.messages import AsyncLLM

# With this many cores, engine core and worker can each spin on one and leave some to other processes.
SPINNING_CORES = 4
# glibc's malloc (2.35 and later) reads this at the start of a process: transparent huge pages for what it maps.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
THREADS_BIND = "VLLM_CPU_OMP_THREADS_BIND"
NO_BINDING = "nobind"


def prepare(arguments: AsyncEngineArgs) -> list[str]:
    """Set the environment for the engine of `arguments`. Returns further options for its command line."""
    if not is_on_cpu():
        return []
    use_huge_pages()
    if options := worker_inside(arguments):
        return options
    bind_threads(arguments)
    return []


async def allocate_stage_inputs(llm: AsyncLLM) -> None:
    """Have the later stages of a pipeline allocate the tensors in which they receive the stage before.

    vLLM 0.32 allocates them in its warm-up, and skips the warm-up on a CPU when nothing is compiled (--enforce-eager).
    The first request would then end the engine with an AssertionError. An empty step allocates them as well.
    """
    if is_on_cpu() and llm.vllm_config.parallel_config.pipeline_parallel_size > 1:
        await run_empty_step(llm)


def use_huge_pages() -> None:
    """Let malloc in the engine's processes use transparent huge pages, where the kernel allows them.

    Logits and logprobs of a step take tens to hundreds of MB. Malloc maps and unmaps them at every step, and page
    faults of 4 KiB take most of the time. Memory that malloc keeps instead (MALLOC_MMAP_MAX_=0) is as fast, but it gets
    fragmented: the engine of a 6 MB model grew to 5.9 GB.
    """
    for name, value in HUGE_PAGES.items():
        os.environ.setdefault(name, value)


def worker_inside(arguments: AsyncEngineArgs) -> list[str]:
    """Options that run the worker inside its engine core's process, if there are few cores and one worker.

    On a CPU, vLLM's worker process and its engine core wait for each other in busy loops. Without a core each, they
    take processor time from each other and from every other process.
    """
    num_cores = len(os.sched_getaffinity(0))
    if num_cores >= SPINNING_CORES or workers_per_engine_core(arguments) > 1:
        return []
    if arguments.distributed_executor_backend is not None:
        return []
    # vLLM requires this for an in-process worker on a CPU. AsyncLLM still runs its engine core in another process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # The number of threads that separate worker processes would use.
    num_threads = max(1, (num_cores - 1) // num_local_workers(arguments))
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    return ["--distributed-executor-backend", "uni"]


def bind_threads(arguments: AsyncEngineArgs) -> None:
    """Bind each worker to cores where vLLM cannot choose them.

    vLLM gives each worker a NUMA node. It refuses to start if there are more workers than nodes, and it gives the ranks
    of data parallelism the same nodes.
    """
    num_workers = num_local_workers(arguments)
    is_chosen_by_vllm = num_workers == 1 or (arguments.data_parallel_size == 1 and num_workers <= num_memory_nodes())
    if is_chosen_by_vllm or os.environ.get(THREADS_BIND):
        return
    binding = split_cores(allowed_cpus(), num_workers)
    os.environ[THREADS_BIND] = binding
    if binding == NO_BINDING:  # otherwise each worker starts one thread per core
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def split_cores(cpus: Sequence[LogicalCPUInfo], num_workers: int) -> str:
    """Divide `cpus` among workers, in the format of VLLM_CPU_OMP_THREADS_BIND: "0,1|4,5" for two workers.

    A worker gets neighbouring cores, of one NUMA node if the numbers allow it, and one logical CPU of each physical
    core. Workers with several cores leave their last one to the engine core and the servers. With fewer CPUs than
    workers the result is "nobind".
    """
    ordered = sorted(cpus, key=lambda cpu: (cpu.numa_node, cpu.id))
    chosen = list({(cpu.numa_node, cpu.physical_core): cpu.id for cpu in ordered}.values())
    if len(chosen) < num_workers:
        chosen = [cpu.id for cpu in ordered]
    if len(chosen) < num_workers:
        return NO_BINDING
    bounds = [rank * len(chosen) // num_workers for rank in range(num_workers + 1)]
    shares = [chosen[start:end] for start, end in pairwise(bounds)]
    return "|".join(",".join(map(str, share[:-1] or share)) for share in shares)


def workers_per_engine_core(arguments: AsyncEngineArgs) -> int:
    """Number of workers of one engine core, over all machines."""
    return arguments.tensor_parallel_size * arguments.pipeline_parallel_size * arguments.prefill_context_parallel_size


def num_local_workers(arguments: AsyncEngineArgs) -> int:
    """Number of workers on this machine, over all its engine cores."""
    per_engine_core = workers_per_engine_core(arguments)
    if arguments.nnodes > 1:
        return max(1, per_engine_core * arguments.data_parallel_size // arguments.nnodes)
    is_one_of_several = arguments.data_parallel_external_lb or arguments.data_parallel_rank is not None
    num_engine_cores = 1 if is_one_of_several else arguments.data_parallel_size_local or arguments.data_parallel_size
    return per_engine_core * num_engine_cores
