"""Training that goes on with the adapter of an earlier run, and with the head beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from workloads.config.sections import Adapter
from workloads.engine.pretrained.adapter import (
    adapter_folder,
    check_same_config,
    load_adapter,
    lora_config,
)
from workloads.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel


def resumed(
    model: nn.Module, adapter: Adapter, head_file: str, is_head: Callable[[str], bool]
) -> "PeftModel":
    """The model under the adapter of `adapter.resume_from`, trainable, with its trained head.

    head_file: where a run writes the head beside an adapter; is_head: whether a weight is the
    head's. Raises UserError where adapter or head are missing, or not as the profile has them.
    """
    folder = Path(adapter.resume_from or "")
    saved = adapter_folder(folder, adapter.name)
    check_same_config(saved, adapter, lora_config(adapter), by_last_name=True)
    wrapped = load_adapter(model, folder, adapter.name, trainable=True)
    own = {name: list(value.shape) for name, value in model.state_dict().items() if is_head(name)}
    file = folder / head_file
    if not own and not file.is_file():
        return wrapped
    try:
        stored = load_file(file)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{file}: expected the head that was trained with the adapter, found {error}; name the "
            "folder of a run's checkpoint or export in adapter.resume_from"
        ) from None
    found = {name: list(value.shape) for name, value in stored.items()}
    for name in sorted({**own, **found}):
        if own.get(name) != found.get(name):
            raise UserError(
                f"{file}: expected the head of action_head, with {name} {own.get(name)}, found "
                f"{found.get(name)}; set action_head as that training had it"
            )
    model.load_state_dict(stored, strict=False)
    return wrapped
