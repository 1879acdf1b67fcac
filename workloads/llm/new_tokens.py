"""New tokens of a profile: in the tokenizer, and as rows of the embeddings."""

from collections.abc import Mapping

import torch
from torch import nn
from transformers import AddedToken, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from workloads.config.sections import Adapter
from workloads.engine.pretrained.adapter import grow_embeddings, is_called
from workloads.engine.pretrained.base import Base
from workloads.engine.pretrained.files import Reporter
from workloads.errors import UserError
from workloads.llm.config import LlmModel


def add_tokens(
    tokenizer: PreTrainedTokenizerBase, model: LlmModel, report: Reporter
) -> dict[int, list[int]]:
    """Add the profile's tokens to the tokenizer; returns each new id → the tokens it was cut into.

    A token that the tokenizer has already keeps its id and is reported. Raises UserError for a text
    that does not become one token.
    """
    known, found = tokenizer.get_vocab(), {}
    wanted = [(text, False) for text in model.add_tokens]
    wanted += [(text, True) for text in model.add_special_tokens]
    pieces = {text: tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in wanted}
    there = [text for text, _ in wanted if text in known]
    if there:
        report(f"model.add_tokens: the tokenizer has {', '.join(map(repr, there))} already")
    for text, special in wanted:
        if text in known:
            continue
        # As written: a normaliser may replace characters or add a space.
        tokenizer.add_tokens(AddedToken(text, normalized=False, special=special), special)
        number = tokenizer.convert_tokens_to_ids(text)
        if tokenizer(text, add_special_tokens=False)["input_ids"] != [number]:
            raise UserError(
                f"model.add_tokens: expected {text!r} to become one token, which this tokenizer "
                "does not do; choose another text"
            )
        found[number] = pieces[text]
    if found:
        report(f"tokenizer: {len(found)} new tokens, {len(tokenizer)} in all")
    return found


def new_rows(base: Base[PreTrainedConfig]) -> dict[int, list[int]]:
    """Each id that the profile adds to a model → the tokens its text was cut into."""
    model = base.model
    if not isinstance(model, LlmModel) or not (model.add_tokens or model.add_special_tokens):
        return {}
    tokenizer = AutoTokenizer.from_pretrained(
        base.folder, trust_remote_code=model.trust_remote_code, local_files_only=True
    )
    return add_tokens(tokenizer, model, lambda text: None)


def grow(model: nn.Module, rows: Mapping[int, list[int]]) -> None:
    """Add rows for new tokens to a model; each starts as the mean of its former pieces.

    So all ranks start alike, and a new token means what its text meant before.
    """
    grow_embeddings(model, max(rows) + 1)
    tables = {id(table): table for table in _tables(model)}
    with torch.no_grad():
        for table in tables.values():
            before = table.detach().clone()
            for number, pieces in rows.items():
                if pieces:
                    table[number] = before[pieces].float().mean(0).to(table.dtype)


def _tables(model: nn.Module) -> list[torch.Tensor]:
    """The tensors with a row for each token: embeddings, and the head's weight and bias."""
    head = model.get_output_embeddings()
    tables = [model.get_input_embeddings().weight]
    tables += [head.weight] if head is not None else []
    bias = getattr(head, "bias", None)
    return [*tables, bias] if bias is not None else tables


def check_trained(model: nn.Module, adapter: Adapter) -> None:
    """Raise UserError where an adapter would not train the rows of new tokens.

    The model may lie on the meta device.
    """
    if adapter.method == "full":
        return
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    wanted = [table] if head is None or head.weight is table.weight else [table, head]
    wanted_ids = {id(module) for module in wanted}
    names = [name for name, module in model.named_modules() if id(module) in wanted_ids]
    if all(any(is_called(name, saved) for saved in adapter.modules_to_save) for name in names):
        return
    listed = ", ".join(name.rpartition(".")[2] for name in names)
    raise UserError(
        "adapter.modules_to_save: expected the modules with the rows of model.add_tokens, which an "
        f"adapter leaves as they are, found {', '.join(adapter.modules_to_save) or 'none'}; set "
        f"adapter.modules_to_save=[{listed}], or adapter.method=full"
    )
