"""GRPO on a CPU, end to end: TRL trains, tritonlive generates, and every step pushes the weights.

    python examples/grpo_cpu.py                      # SmolLM2-135M on a server of its own
    python examples/grpo_cpu.py --url http://127.0.0.1:9000 --steps 10

The task is to answer in digits, not in words. The reward counts characters and needs no judge. The run writes a
picture, its figures as JSON, and the trained model to --out.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from transformers import TrainerCallback

from tritonlive.launch import Stack, StackConfig
from tritonlive.launch.config import default_cache_dir
from tritonlive.launch.default_model import default_model
from tritonlive.launch.tiny_model import tiny_model

if TYPE_CHECKING:
    from sync.trl.client import VLLMClient

MODELS = {"smollm2": default_model, "tiny": tiny_model}
LEARNING_RATES = {"smollm2": 2e-5, "tiny": 1e-2}
PICTURE = "grpo_cpu.png"
STACK_READY_TIMEOUT_S = 300
TOPICS = (
    *("the population of Paris", "the year the war ended", "my telephone number", "the price of a car"),
    *("the distance to the moon", "the height of a tree", "the number of stars", "a birthday"),
    *("the area of a field", "the weight of an elephant", "the speed of light", "the score of the game"),
    *("a house number", "the time now", "the length of a river", "the age of the earth"),
)


@dataclass(frozen=True)
class Step:
    """One training step; times in seconds. `version` is what the server reported with its answers."""

    step: int
    reward: float
    version: str
    rollout_s: float
    train_s: float
    push_s: float


def digits_not_letters(completions: list[list[dict[str, str]]], **_: Any) -> list[float | None]:
    """Rewards of the answers: (digits - letters) / characters, from -1 (only words) to 1 (only digits)."""
    rewards: list[float | None] = []
    for completion in completions:
        written = "".join(completion[0]["content"].split())
        score = sum(c.isdigit() for c in written) - sum(c.isalpha() for c in written)
        rewards.append(score / len(written) if written else -1.0)
    return rewards


def prompts() -> list[dict[str, Any]]:
    ask = "Answer with numbers only. What is {}?"
    return [{"prompt": [{"role": "user", "content": ask.format(topic)}]} for topic in TOPICS]


def server_config(model_dir: Path) -> StackConfig:
    """Configuration of a server whose logprobs suit TRL: in float32, and computed after temperature."""
    return StackConfig(
        model=str(model_dir),
        extra_args=(
            *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager"),
            *("--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1"),
        ),
        kv_cache_space_gib=1,
    )


class Recorder(TrainerCallback):
    """Measures the phases of every step, and reports the step once its reward is known."""

    def __init__(self, report: Callable[[Step], None]) -> None:
        self.steps: list[Step] = []
        self._report = report
        self._began = self._took = 0.0
        self._spent = dict.fromkeys(("rollout", "push"), 0.0)

    def watch(self, client: "VLLMClient") -> None:
        """Start timing the client's calls."""
        self._client = client
        for method, phase in (("generate", "rollout"), ("update_named_params", "push")):
            vars(client)[method] = self._timed(getattr(client, method), phase)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()
        self._spent = dict.fromkeys(self._spent, 0.0)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._took = time.perf_counter() - self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, float] | None = None, **_: Any) -> None:
        if not logs or "reward" not in logs:
            return  # TRL's summary at the end has no reward
        rollout, push = self._spent["rollout"], self._spent["push"]
        version = self._client.served_version or "?"
        step = Step(state.global_step, logs["reward"], version, rollout, self._took - rollout - push, push)
        self.steps.append(step)
        self._report(step)

    def _timed(self, call: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._spent[phase] += time.perf_counter() - began

        return timed


def train(
    model_dir: Path,
    url: str,
    client_options: dict[str, str],
    steps: int,
    learning_rate: float,
    out: Path,
    report: Callable[[Step], None],
) -> list[Step]:
    """Train, push the final weights, and save the model to `out`."""
    # TRL warns about vLLM versions that it is not tested with. Here TRL neither runs vLLM nor pushes to it.
    warnings.filterwarnings("ignore", message="TRL currently supports vLLM")
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    import sync.trl

    sync.trl.install(**client_options)  # the only line that TRL's own documentation does not have
    # Trainer and server work in turn, so each may use all cores.
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    recorder = Recorder(report)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(model_dir),
        reward_funcs=digits_not_letters,
        train_dataset=Dataset.from_list(prompts()),
        callbacks=[recorder],
        args=GRPOConfig(
            output_dir=str(out),
            max_steps=steps,
            learning_rate=learning_rate,
            lr_scheduler_type="constant",
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=16,
            use_vllm=True,
            vllm_mode="server",
            vllm_server_base_url=url,
            vllm_group_port=0,  # any free port
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        ),
    )
    trainer.remove_callback(PrinterCallback)
    client: Any = trainer.vllm_generation.vllm_client
    recorder.watch(client)
    try:
        trainer.train()
        trainer.vllm_generation.sync_weights()  # TRL pushes before it generates, so the last step is not pushed yet
    finally:
        client.close()
    trainer.save_model(str(out / "model"))
    return recorder.steps


def draw(steps: list[Step], path: Path) -> None:
    """Draw reward, weight version and seconds per phase of each step into `path`."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    numbers = [step.step for step in steps]
    figure, (reward, version, seconds) = plt.subplots(3, 1, figsize=(8, 8), sharex=True, layout="constrained")
    reward.plot(numbers, [step.reward for step in steps], marker="o", markersize=3, color="tab:blue")
    reward.set(ylabel="mean reward", ylim=(-1.05, 1.05), title="GRPO on a CPU: TRL trains, tritonlive generates")
    version.step(numbers, [int(step.version.rpartition("-")[2]) for step in steps], where="mid", color="tab:purple")
    version.set(ylabel="weight version\nthat answered (step-N)")
    bottom = [0.0] * len(steps)
    for phase, color in (("rollout", "tab:green"), ("train", "tab:orange"), ("push", "tab:red")):
        heights = [getattr(step, f"{phase}_s") for step in steps]
        seconds.bar(numbers, heights, bottom=bottom, label=phase, color=color, width=0.8)
        bottom = [b + h for b, h in zip(bottom, heights, strict=True)]
    seconds.set(xlabel="training step", ylabel="seconds")
    seconds.legend(ncols=3)
    for axes in (reward, version, seconds):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


@contextmanager
def server(url: str | None, model_dir: Path, console: Console) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (address, client options) of the server at `url`, or of a new server that runs during the `with` block."""
    if url:
        yield url, {}
        return
    with Stack(server_config(model_dir)) as stack:
        with console.status("starting the server …"):
            stack.wait_ready(STACK_READY_TIMEOUT_S)
        yield stack.frontend_url, {"control_key": stack.control_key}


def main(
    steps: Annotated[
        int, typer.Option(min=1, help="Training steps; each is 16 answers, one update and one push.")
    ] = 30,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the picture, steps.json and model/.")] = Path(
        "grpo_cpu"
    ),
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A running server with the same model and the gloo backend. Its control key is in the URL "
            "(http://user:KEY@host:9000) or in TRITONLIVE_CONTROL_KEY. By default the script starts a server.",
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="smollm2 (135 M parameters) or tiny (3 M, random; a test of the plumbing).")
    ] = "smollm2",
    learning_rate: Annotated[float | None, typer.Option(min=0, help="Default: 2e-5 (smollm2), 1e-2 (tiny).")] = None,
) -> None:
    """Train a small model to answer in digits with TRL's GRPOTrainer and a tritonlive server, on this machine's CPU."""
    if model not in MODELS:
        raise typer.BadParameter(f"{model!r} is not one of {', '.join(MODELS)}", param_hint="--model")
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    model_dir = MODELS[model](default_cache_dir())
    began = time.perf_counter()

    def report(step: Step) -> None:
        console.print(
            f"step {step.step:3d}  reward {step.reward:.3f}  weights {step.version:8s}  "
            f"rollout {step.rollout_s:.1f} s  train {step.train_s:.1f} s  push {step.push_s:.1f} s",
            highlight=False,
            soft_wrap=True,
        )

    with server(url, model_dir, console) as (address, options):
        console.print(f"server ready after {time.perf_counter() - began:.0f} s", highlight=False)
        taken = train(model_dir, address, options, steps, learning_rate or LEARNING_RATES[model], out, report)
    (out / "steps.json").write_text(json.dumps([asdict(step) for step in taken], indent=1))
    draw(taken, out / PICTURE)
    console.print(f"{steps} steps in {time.perf_counter() - began:.0f} s; see {out / PICTURE}", highlight=False)


app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False
)  # tracebacks with local variables would show the key
app.command()(main)

if __name__ == "__main__":
    app()
