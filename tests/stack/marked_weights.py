"""A trainer process that pushes new weights every second: marked_weights.py TARGET CHECKPOINT.

Weights of version "step-k" make token FIRST_TOKEN + k and no other, whatever the prompt: a token says for itself which
weights made it. It pushes until its standard input ends, then the checkpoint's own weights, and says `NAME` of each
version that is live.
"""

import sys
import threading
import time
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file

from sync import WeightSync

FIRST_TOKEN = 1000  # an ordinary one, as are those that follow
INTERVAL_S = 1.0


def version_of(token: int) -> str:
    return f"step-{token - FIRST_TOKEN}"


def marked(weights: dict[str, torch.Tensor], token: int) -> dict[str, torch.Tensor]:
    """The checkpoint, changed so that every next token is `token`.

    The layers add nothing, and the last norm lets only the first component through, so that a token's logit is that
    component of its embedding times a positive number: 64 for `token`, 1 for all others, so that no sampling misses it.
    """
    changed = {name: tensor.clone() for name, tensor in weights.items()}
    for name, tensor in changed.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    changed["model.norm.weight"].zero_()[0] = 1
    embedding = changed["model.embed_tokens.weight"]  # and the output head: they are tied
    embedding[:, 0] = 1
    embedding[token, 0] = 64
    return changed


def main(target: str, checkpoint: str) -> None:
    weights = load_file(Path(checkpoint) / "model.safetensors")
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with WeightSync(target, backend="gloo", timeout=60) as sync:
        due = time.monotonic()
        for step in count():
            if ended.wait(max(0.0, due - time.monotonic())):
                break
            due = max(due + INTERVAL_S, time.monotonic())
            report = sync.push(marked(weights, FIRST_TOKEN + step), version_of(FIRST_TOKEN + step))
            print(report.version, flush=True)  # noqa: T201 - read by the test
        sync.push(weights, "restored")


if __name__ == "__main__":
    main(*sys.argv[1:])
