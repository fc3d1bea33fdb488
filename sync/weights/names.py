"""Names in a state dict with and without the prefixes that wrappers of the trainer's module add."""

import re
from collections.abc import Iterable

from sync.errors import SourceError

# torch.compile, FSDP1 and activation checkpointing wrap any module of the tree, DDP only its root.
_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_DDP = "module."
_PEFT = re.compile(r"\.(?:lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)|base_layer|modules_to_save)\.")


def without_wrappers(name: str) -> str:
    """The name without the prefixes of torch.compile, FSDP1 and activation checkpointing."""
    return _WRAPPERS.sub("", name)


def without_ddp(name: str) -> str:
    """The name without DDP's leading `module.`, and without the other wrappers."""
    return without_wrappers(name).removeprefix(_DDP)


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without wrappers, by name. Raises SourceError for duplicates, and for names of PEFT."""
    plain = plain_names(names)
    refuse_peft_names(plain.values())
    return plain


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each name without wrappers, by name. Raises SourceError for duplicates.

    A leading `module.` is removed only when all names have it: DDP wraps the whole module.
    """
    plain = {name: without_wrappers(name) for name in names}
    while plain and all(name.startswith(_DDP) for name in plain.values()):
        plain = {name: without_wrappers(short.removeprefix(_DDP)) for name, short in plain.items()}
    owners: dict[str, str] = {}
    for name, short in plain.items():
        if short in owners:
            raise SourceError(f"weights: {owners[short]} and {name} are both {short} without their wrappers")
        owners[short] = name
    return plain


def refuse_peft_names(names: Iterable[str]) -> None:
    """Raises SourceError on a name of an un-merged PEFT model: its scaling is in the model, not in its tensors."""
    if unmerged := next((name for name in names if _PEFT.search(f".{name}")), None):
        raise SourceError(
            f"weights: {unmerged} belongs to an un-merged PEFT adapter, whose scaling a state dict does not have: push "
            "the PEFT model itself, which a push merges; or merge first (merge_adapter(), merge_and_unload()); "
            "or serve the adapter beside the base model with push_adapter()"
        )
