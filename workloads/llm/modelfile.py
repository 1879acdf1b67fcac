"""A Modelfile for Ollama beside an exported model: chat template and stop tokens.

Ollama's templates are Go's. The text that the model's own template writes around a system turn, a
question and an answer is found by rendering it, so both give the same prompt for one question.
"""

from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from workloads.engine.pretrained.chat import PROBE, stop_ids
from workloads.engine.pretrained.files import ADAPTER_CONFIG, is_adapter
from workloads.errors import UserError
from workloads.json_files import read_json
from workloads.llm.data.switches import Switches
from workloads.run.integrity import changing

NAME = "Modelfile"
_SYSTEM = "SystemWords"


def write_modelfile(folder: Path) -> Path:
    """Write the Modelfile of an exported folder, whole or an adapter. Raises UserError.

    Ollama reads the safetensors beside it: `ollama create NAME -f FOLDER/Modelfile`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    lines = ["FROM ."]
    if is_adapter(folder):
        base = read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"]
        lines = [f"FROM {base}", "ADAPTER ."]
    lines.append(f'TEMPLATE """{go_template(tokenizer)}"""')
    for token in tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, generation)):
        lines.append(f'PARAMETER stop "{token}"')
    path = folder / NAME
    with changing(folder, NAME):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def go_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template in Ollama's form, for a system turn, a question and its answer.

    Raises UserError for a template that takes no single question.
    """
    switches = Switches(tokenizer)
    asked = {"role": "user", "content": PROBE}
    plain = switches.tried([asked])
    answered = switches.tried([asked, {"role": "assistant", "content": _SYSTEM}], False)
    if plain is None or plain.count(PROBE) != 1 or answered is None:
        raise UserError(
            "--ollama: expected a chat template that takes one question, found one that does not; "
            "write TEMPLATE in the Modelfile by hand"
        )
    before, behind = plain.split(PROBE)
    head = _go(_without_begin(before, switches))
    with_system = switches.tried([{"role": "system", "content": _SYSTEM}, asked])
    if with_system is not None and _SYSTEM in with_system and switches.takes_system:
        around = _without_begin(with_system.split(PROBE)[0], switches).split(_SYSTEM)
        system = f"{_go(around[0])}{{{{ .System }}}}{_go(around[-1])}"
        head = f"{{{{ if .System }}}}{system}{{{{ else }}}}{head}{{{{ end }}}}"
    else:
        head += "{{ if .System }}{{ .System }}\n\n{{ end }}"
    end = answered.rpartition(_SYSTEM)[2] or (tokenizer.eos_token or "")
    return f"{head}{{{{ .Prompt }}}}{_go(behind)}{{{{ .Response }}}}{_go(end)}"


def _without_begin(text: str, switches: Switches) -> str:
    """Remove the start token, which Ollama puts before a prompt itself."""
    begin = switches.tokenizer.bos_token or ""
    return text.removeprefix(begin) if begin else text


def _go(text: str) -> str:
    """Escape text for a Go template, where braces would open an action."""
    return text.replace("{{", '{{ "{{" }}')


__all__ = ["NAME", "go_template", "write_modelfile"]
