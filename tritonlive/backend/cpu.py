"""What vLLM needs said to run well on a CPU: where its workers live, which cores they compute on, how malloc behaves.

Everything here goes into vLLM's arguments and into the environment that its processes inherit. On other platforms none
of it does anything; what the user has set stays.
"""

import os
from collections.abc import Sequence
from itertools import pairwise

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.utils.cpu_resource_utils import LogicalCPUInfo, get_allowed_cpu_list, get_visible_memory_node
from vllm.v1.engine.async_llm import AsyncLLM

# With so many cores an engine core and a worker can spin on one each and leave some to the others.
SPINNING_CORES = 4
# What glibc's malloc reads at the start of a process (mallopt(3)).
KEEPING_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**30)}
THREADS_BIND = "VLLM_CPU_OMP_THREADS_BIND"
NO_BINDING = "nobind"


def prepare(arguments: AsyncEngineArgs) -> list[str]:
    """Set the environment for the engine that `arguments` describe; returns further options for its command line."""
    if not current_platform.is_cpu():
        return []
    keep_memory()
    if options := worker_inside(arguments):
        return options
    bind_threads(arguments)
    return []


async def allocate_stage_inputs(llm: AsyncLLM) -> None:
    """Have each later stage of a pipeline allocate the tensors in which it receives the stage before it.

    vLLM 0.32 allocates them in its warm-up, which it leaves out on a CPU when nothing is compiled (--enforce-eager);
    the first request then ends the engine with an AssertionError. An empty step does what the warm-up would.
    """
    if current_platform.is_cpu() and llm.vllm_config.parallel_config.pipeline_parallel_size > 1:
        await llm.collective_rpc("execute_dummy_batch")


def keep_memory() -> None:
    """Have the engine's processes keep up to a gibibyte of the memory they free.

    Logits and logprobs of a step are tens to hundreds of MB. By default each is mapped anew and given back, and most of
    the time goes into page faults: scores with the 100 likeliest tokens took 1.6 times as long.
    """
    for name, value in KEEPING_MEMORY.items():
        os.environ.setdefault(name, value)


def worker_inside(arguments: AsyncEngineArgs) -> list[str]:
    """Options that put each worker into its engine core's process, where cores are few and an engine core has one.

    vLLM's worker process on a CPU and its engine core wait for each other in busy loops. Where they have no core each
    they take the time from each other, and from everybody else on the machine.
    """
    num_cores = len(os.sched_getaffinity(0))
    if num_cores >= SPINNING_CORES or workers_per_engine_core(arguments) > 1:
        return []
    if arguments.distributed_executor_backend is not None:
        return []
    # vLLM's condition for a worker inside on a CPU; AsyncLLM has its engine core in a process of its own all the same.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # As the workers' processes would have.
    num_threads = max(1, (num_cores - 1) // num_local_workers(arguments))
    os.environ.setdefault("OMP_NUM_THREADS", str(num_threads))
    return ["--distributed-executor-backend", "uni"]


def bind_threads(arguments: AsyncEngineArgs) -> None:
    """Say which cores each worker computes on, where vLLM cannot choose them by itself.

    vLLM gives each worker a NUMA node of its own. It refuses to start where workers outnumber nodes, and gives the
    ranks of data parallelism the same nodes.
    """
    num_workers = num_local_workers(arguments)
    is_chosen_by_vllm = num_workers == 1 or (
        arguments.data_parallel_size == 1 and num_workers <= len(get_visible_memory_node())
    )
    if is_chosen_by_vllm or os.environ.get(THREADS_BIND):
        return
    binding = split_cores(get_allowed_cpu_list(), num_workers)
    os.environ[THREADS_BIND] = binding
    if binding == NO_BINDING:  # else each would start as many threads as there are cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def split_cores(cpus: Sequence[LogicalCPUInfo], num_workers: int) -> str:
    """`cpus` divided among the workers as VLLM_CPU_OMP_THREADS_BIND has it: "0,1|4,5" for two workers.

    A worker gets neighbours of one NUMA node where the numbers allow it, and one logical CPU of each physical core.
    Workers with several cores leave their last one to the engine core and the servers. With fewer CPUs than workers
    nobody is bound.
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
    """Workers of one engine core, on all its machines."""
    return arguments.tensor_parallel_size * arguments.pipeline_parallel_size * arguments.prefill_context_parallel_size


def num_local_workers(arguments: AsyncEngineArgs) -> int:
    """Workers on this machine, those of all its engine cores together."""
    per_engine_core = workers_per_engine_core(arguments)
    if arguments.nnodes > 1:
        return max(1, per_engine_core * arguments.data_parallel_size // arguments.nnodes)
    is_one_of_several = arguments.data_parallel_external_lb or arguments.data_parallel_rank is not None
    num_engine_cores = 1 if is_one_of_several else arguments.data_parallel_size_local or arguments.data_parallel_size
    return per_engine_core * num_engine_cores
