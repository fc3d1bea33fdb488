"""Child process of test_offline_llm.py: vLLM's offline LLM as the replica, pushes over gloo."""

import json
import sys
import time
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from sync.errors import TransferError
from sync.transport.trainer.gloo_trainer import GlooTrainerInitInfo
from sync.weights.check import ServedModel, fit
from sync.weights.open_source import open_source
from sync.worker.loading import load
from tests.sync.driven_trainer import DrivenTrainer

PROMPTS = ["The capital of France is", "One, two, three,"]


class Client:
    """The four methods of vLLM's VLLMWeightSyncClient, over an LLM in the same process."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.finish_s = 0.0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._llm.init_weight_transfer_engine({"init_info": init_info})

    def start_weight_update(self) -> None:
        self._llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self) -> None:
        began = time.perf_counter()
        self._llm.finish_weight_update()
        self.finish_s = time.perf_counter() - began

    def abort(self) -> None:
        self.update_weights({"abort": "test"})
        self.finish_weight_update()


class LoadPartly:
    """The error of `load` for weights without some tensors. Runs in the worker."""

    def __init__(self, weights: dict[str, torch.Tensor], model_config: Any) -> None:
        self._weights, self._model_config = weights, model_config

    def __call__(self, model: Any) -> str:
        try:
            load(model, self._model_config, self._weights.items())
        except TransferError as error:
            return str(error)
        return ""


def wrap_loader(model: Any) -> None:
    """Give the embedding a loader that wraps another, as a model may have; run inside the worker."""
    (embedding,) = (m for m in model.modules() if type(m) is VocabParallelEmbedding)
    embedding.weight_loader = wraps(embedding.weight_loader)(lambda *args, own=embedding.weight_loader: own(*args))
    embedding.weight.weight_loader = embedding.weight_loader


def look_at_embedding(model: Any) -> dict[str, Any]:
    """The embedding's address, and the error of the tied head's output. Runs in the worker."""
    modules = list(model.modules())
    (head,) = (module for module in modules if isinstance(module, ParallelLMHead))
    (embedding,) = (m for m in modules if isinstance(m, VocabParallelEmbedding) and m is not head)
    x = torch.ones(1, embedding.weight.shape[1], dtype=embedding.weight.dtype)
    expected = torch.nn.functional.linear(x, embedding.weight)
    products = [layer.quant_method.apply(layer, x) for layer in (embedding, head)]
    return {
        "address": embedding.weight.data_ptr(),
        "head_address": head.weight.data_ptr(),
        "loader": embedding.weight.weight_loader == embedding.weight_loader,
        "difference": max(float((product - expected).abs().max() / expected.abs().max()) for product in products),
        "sum": float(embedding.weight.float().abs().sum()),
    }


def main(model: str) -> dict[str, Any]:
    llm = LLM(
        model,
        dtype="float32",
        enforce_eager=True,
        max_model_len=256,
        weight_transfer_config=WeightTransferConfig(backend="gloo"),
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=16)

    def generate() -> list[list[int]]:
        return [list(output.outputs[0].token_ids) for output in llm.generate(PROMPTS, sampling, use_tqdm=False)]

    client = Client(llm)
    source = open_source(model)
    served = ServedModel("llm", {meta.name: meta for meta in source.metadata()})
    original = {name: tensor.clone() for name, tensor in source}
    perturbed = {name: tensor + torch.randn_like(tensor) * tensor.std() * 0.3 for name, tensor in original.items()}
    broken = original | {"model.norm.weight": original["model.norm.weight"] * float("nan")}

    def connect() -> DrivenTrainer:
        return DrivenTrainer(GlooTrainerInitInfo("127.0.0.1", 0, 2, 60.0), client, source)

    def push(trainer: DrivenTrainer, weights: dict[str, torch.Tensor]) -> float:
        trainer.source = fit(open_source(weights), served)
        began = time.perf_counter()
        trainer.push()
        return time.perf_counter() - began

    result: dict[str, Any] = {"before": generate(), "seconds": [], "finish_s": []}
    llm.apply_model(wrap_loader)
    result["embeddings"] = llm.apply_model(look_at_embedding)
    trainer = connect()
    for weights, after in ((perturbed, "perturbed"), (original, "restored"), (perturbed, "again"), (original, "twice")):
        result["seconds"].append(push(trainer, weights))
        result["finish_s"].append(client.finish_s)
        result[after] = generate()
        result["embeddings"] += llm.apply_model(look_at_embedding)

    # Rejections: refused weights change nothing, and the next trainer connects.
    result["rejections"] = []
    for weights, model_of in ((broken, served), (original | {"x": torch.ones(1)}, None)):
        trainer.source = fit(open_source(weights), model_of) if model_of else open_source(weights)
        try:
            trainer.push()
        except TransferError as error:
            result["rejections"].append(str(error))
        client.abort()
        trainer.shutdown()
        llm.collective_rpc("shutdown_weight_transfer_engine")
        result["after_rejection"] = generate()
        trainer = connect()
    push(trainer, perturbed)
    result["after_reconnect"] = generate()
    trainer.shutdown()

    # A model whose loader passes a tensor over: vLLM would go on with the layer's old weights and say nothing.
    for left_out, named in (("layers.1.self_attn", "partial"), ("embed_tokens", "without_embedding")):
        partial = {name: tensor for name, tensor in original.items() if left_out not in name}
        (result[named],) = llm.apply_model(LoadPartly(partial, llm.model_config))
    result["embeddings"] += llm.apply_model(look_at_embedding)
    result["bytes"] = fit(source, served).num_bytes
    return result


if __name__ == "__main__":
    answer = main(sys.argv[1])
    Path(sys.argv[2]).write_text(json.dumps(answer))
