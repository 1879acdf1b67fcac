"""Weights of a checkpoint back into a model, whatever names they have on disk."""

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, Trainer

from workloads.errors import TataraError


class LoadsByName(Trainer):
    """Mixin for Trainer classes that resume whole models, vision-language models among them.

    `save_pretrained` writes many of these under the names that older versions used. The library's
    own way back matches names as they are and leaves out what it does not know: a resumed run
    would go on from the weights that it first began with.
    """

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        """Through from_pretrained, which knows both names; shards and adapters as the library."""
        model = self.model if model is None else model
        if self.is_fsdp_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        load: Any = type(model).from_pretrained
        whole, found = load(
            Path(resume_from_checkpoint),
            dtype=next(model.parameters()).dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            raise TataraError(
                f"{resume_from_checkpoint}: expected every weight of the model, found none for "
                f"{len(missing)}, the first {missing[0]}; resume an older checkpoint"
            )
        model.load_state_dict(whole.state_dict())
