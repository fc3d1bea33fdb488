"""Models that embed, score and classify, through the same Triton: real vLLM, answers as transformers computes them."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from sync import WeightSync
from tests.matrix.models import tiny_checkpoint
from tests.stack.triton_requests import generate
from tritonlive.launch import Stack, StackConfig

TEXTS = ["The river is long.", "Nobody has seen both of its ends.", "A short one", "x"]
ATOL = 1e-4
MAX_MODEL_LEN = 128
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "embedder": ("--runner=pooling", "--convert=embed"),
    "encoder": (),
    "cross-encoder": (),
    "classifier": (),
}


@dataclass
class Running:
    """A stack that serves a tiny model of that kind."""

    kind: str
    stack: Stack
    folder: Path

    def ask(self, path: str, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self.stack.api_key}"}
        return httpx.post(self.stack.frontend_url + path, json=body, headers=headers, timeout=60)

    def embed(self, texts: Any, **options: Any) -> np.ndarray:
        answer = self.ask("/v1/embeddings", input=texts, **options)
        assert answer.status_code == 200, answer.text
        return np.array([each["embedding"] for each in answer.json()["data"]])

    def tokens(self, *texts: Any) -> Any:
        tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
        return tokenizer(*texts, return_tensors="pt")


@pytest.fixture(scope="module")
def running(
    request: pytest.FixtureRequest, stack_config: StackConfig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    kind = request.param
    folder = tiny_checkpoint(stack_config.cache_dir, kind)
    config = replace(
        stack_config,
        model=str(folder),
        extra_args=(
            *("--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN)),
            *ARGUMENTS[kind],
        ),
        log_dir=tmp_path_factory.mktemp(kind),
    )
    with Stack(config) as stack:
        assert stack.wait_ready(400).generates is False
        yield Running(kind, stack, folder)
        stack.kill()


@torch.no_grad()
def expected_embedding(running: Running, tokens: Any, model: Any = None) -> np.ndarray:
    """Of the last token of a decoder, of the first one of an encoder, of length 1."""
    model = model or AutoModel.from_pretrained(running.folder, dtype=torch.float32)
    states = model(**tokens).last_hidden_state[0]
    state = states[-1 if running.kind == "embedder" else 0]
    return torch.nn.functional.normalize(state, dim=-1).numpy()


@pytest.mark.parametrize("running", ["embedder", "encoder"], indirect=True)
def test_embeddings_are_those_of_transformers(running: Running) -> None:
    found = running.embed(TEXTS)
    for text, embedding in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(embedding, expected_embedding(running, running.tokens(text)), atol=ATOL)
    token_ids = [running.tokens(text)["input_ids"][0].tolist() for text in TEXTS]
    np.testing.assert_allclose(running.embed(token_ids), found, atol=ATOL)
    encoded = running.ask("/v1/embeddings", input=TEXTS, encoding_format="base64").json()["data"]
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), np.float32) for each in encoded]
    np.testing.assert_allclose(decoded, found, atol=ATOL)


@pytest.mark.parametrize("running", ["embedder", "encoder"], indirect=True)
def test_many_texts_in_one_request_come_back_in_their_order(running: Running) -> None:
    texts = [f"text number {number}" for number in range(300)]
    found = running.embed(texts)
    for number in (0, 7, 299):
        alone = expected_embedding(running, running.tokens(texts[number]))
        np.testing.assert_allclose(found[number], alone, atol=ATOL)


@pytest.mark.parametrize("running", ["embedder", "encoder"], indirect=True)
def test_pushed_weights_embed_and_the_answer_says_which(running: Running) -> None:
    first, model = (AutoModel.from_pretrained(running.folder, dtype=torch.float32) for _ in range(2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn_like(parameter) * 0.1
    target = f"grpc://{running.stack.grpc_url}"
    before = running.embed(TEXTS)
    with WeightSync([target], backend="gloo", control_key=running.stack.control_key, timeout=120) as sync:
        sync.push(pushed(running, model), version="other")
        answer = running.ask("/v1/embeddings", input=TEXTS)
        assert answer.headers["x-weight-version"] == "other"
        found = np.array([each["embedding"] for each in answer.json()["data"]])
        for text, embedding in zip(TEXTS, found, strict=True):
            np.testing.assert_allclose(embedding, expected_embedding(running, running.tokens(text), model), atol=ATOL)
        sync.push(pushed(running, first))
    np.testing.assert_allclose(running.embed(TEXTS), before, atol=ATOL)


def pushed(running: Running, model: Any) -> Any:
    """The model's tensors with the names of its checkpoint."""
    if running.kind == "encoder":
        return model
    return {f"model.{name}": parameter for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("running", ["cross-encoder"], indirect=True)
@torch.no_grad()
def test_scores_and_ranks_are_those_of_transformers(running: Running) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(running.folder, dtype=torch.float32)
    expected = [model(**running.tokens(TEXTS[0], text)).logits[0].sigmoid().item() for text in TEXTS]
    scored = running.ask("/score", text_1=TEXTS[0], text_2=TEXTS).json()["data"]
    assert [each["score"] for each in scored] == pytest.approx(expected, abs=ATOL)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        ranked = running.ask(path, query=TEXTS[0], documents=TEXTS, top_n=3).json()["results"]
        best = sorted(range(len(TEXTS)), key=lambda number: -expected[number])[:3]
        assert [each["index"] for each in ranked] == best


@pytest.mark.parametrize("running", ["classifier"], indirect=True)
@torch.no_grad()
def test_classes_are_those_of_transformers(running: Running) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(running.folder, dtype=torch.float32)
    answer = running.ask("/classify", input=TEXTS).json()["data"]
    for text, found in zip(TEXTS, answer, strict=True):
        np.testing.assert_allclose(found["probs"], model(**running.tokens(text)).logits[0].softmax(-1), atol=ATOL)


@pytest.mark.parametrize("running", ARGUMENTS, indirect=True)
def test_what_the_model_cannot_do_is_refused_and_harms_nobody(running: Running) -> None:
    assert running.ask("/v1/completions", prompt="a", max_tokens=1).status_code == 404
    native = generate(running.stack, "llm", {"text_input": "a", "sampling_parameters": '{"max_tokens": 1}'})
    assert native.status_code == 400
    assert "This model does not support generation" in native.json()["error"]
    too_long = running.ask("/pooling", input=list(range(3, MAX_MODEL_LEN + 10)))
    assert too_long.status_code == 400
    assert str(MAX_MODEL_LEN) in too_long.json()["error"]["message"]
    assert running.ask("/pooling", input="a", task="nothing").status_code == 400
    many = running.ask("/pooling", input=[[3]] * 1025)
    assert (many.status_code, many.json()["error"]["param"]) == (400, "input")
    assert running.ask("/pooling", input=TEXTS[0]).status_code == 200
    assert httpx.get(running.stack.frontend_url + "/health", timeout=10).status_code == 200
