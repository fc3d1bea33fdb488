"""The model's tensors, as config.pbtxt defines and comments them."""

from docgen import source


def tensor_contract() -> str:
    text = (source.ROOT / "model_repository" / "llm" / "config.pbtxt").read_text().strip()
    return f"```protobuf\n{text}\n```"
