"""Llama's tokenizer from its tokenizer.json, without transformers."""

from pathlib import Path

from tokenizers import Tokenizer

from workloads.errors import UserError
from workloads.vla.processing import EOS_TOKEN_ID, SPACE_TOKEN_ID

FILE = "tokenizer.json"
# Files of a base that are exported, too, so that its own tools find them.
COMPANIONS = (
    FILE,
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "processor_config.json",
)
_SPACE, _BEGIN, _END = "▁", "<s>", "</s>"


class LlamaTokenizer:
    """Tokenizer for `processing.tokenize_prompt`; raises UserError where ids are not Llama's."""

    def __init__(self, folder: Path) -> None:
        file = folder / FILE
        if not file.is_file():
            raise UserError(
                f"{folder}: expected {FILE}, found none; take it from the hub's openvla/openvla-7b"
            )
        try:
            self._inner = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises no more special type
            raise UserError(f"{file}: expected a tokenizer, found: {error}") from error
        self.bos_token_id = self._id(file, _BEGIN, 1)
        self._id(file, _END, EOS_TOKEN_ID)
        self._id(file, _SPACE, SPACE_TOKEN_ID)

    def _id(self, file: Path, token: str, expected: int) -> int:
        found = self._inner.token_to_id(token)
        if found != expected:
            raise UserError(
                f"{file}: expected {token!r} to be token {expected} as in Llama 2, found {found}; "
                "use the tokenizer of the checkpoint"
            )
        return expected

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=add_special_tokens).ids)
