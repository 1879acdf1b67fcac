"""The page of models by GPU memory, and the plans in comments of recipes."""

from pathlib import Path

from workloads.commands.models import METHODS, recipes_of
from workloads.plan.models import KnownModel, Way, fitting, known_models, ways
from workloads.plan.recipes import plan_comment

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "profiles" / "recipes"
_GIB = 2**30
_CARDS = (8, 16, 24, 32, 64)
_MARK = "# Plan: "
# GPU memory → the model and the methods that guides recommend for it.
_GUIDE = {
    8: ("stabilityai/japanese-stablelm-3b-4e1t-instruct", ("lora", "qlora")),
    16: ("elyza/Llama-3-ELYZA-JP-8B", ("lora", "qlora")),
    24: ("elyza/Llama-3-ELYZA-JP-8B", ("full", "lora")),
    32: ("cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese", ("qlora",)),
    64: ("cyberagent/DeepSeek-R1-Distill-Qwen-32B-Japanese", ("full", "lora")),
}

_INTRODUCTION = """\
# Models by GPU memory

Written by `python scripts/reference_docs.py` from `workloads/plan/models.json` and the planner.
`tatara models --language ja --gpu-memory 24 --method lora` prints the same for your card, offline.

Planned for one GPU with the recipes `llm-full`, `llm-lora` and `llm-qlora`: rows of 1,024 tokens,
one at a time, gradient checkpointing, adapters of rank 16 on all linear layers. *full* has fp32
masters and 8-bit moments; full\\* has weights in bf16 (`train.master_weights=compute`), where small
updates round away. What fits has 8% of the card to spare. These are predictions:
[planning](planning.md) says how far they are from what was measured."""


def page() -> str:
    """docs/models.md."""
    recipes = recipes_of(METHODS)
    planned = {model: ways(model.shape, recipes) if model.shape else [] for model in known_models()}
    parts = [_INTRODUCTION, _by_card(planned), _guide(planned), _all(planned), _SURE]
    return "\n\n".join(parts) + "\n"


def _table(heads: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(heads), ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _by_card(planned: dict[KnownModel, list[Way]]) -> str:
    rows = []
    for card in _CARDS:
        cells = []
        for method in METHODS:
            able = [
                (model.parameters, model, way)
                for model, found in planned.items()
                if model.language == "ja"
                for way in fitting(found, card * _GIB)
                if way.method == method
            ]
            _, model, way = max(able, key=lambda entry: entry[0], default=(0, None, None))
            cells.append(f"{model.id} ({_need(way)})" if model and way else "none")
        rows.append([f"{card} GB", *cells])
    heads = ("GPU", *(f"largest by {method}" for method in METHODS))
    return f"## The largest Japanese model for a card\n\n{_table(heads, rows)}"


def _need(way: Way) -> str:
    mark = "\\*" if way.settings else ""
    return f"{way.total / _GIB:.1f} GiB{mark}"


def _guide(planned: dict[KnownModel, list[Way]]) -> str:
    by_id = {model.id: found for model, found in planned.items()}
    rows = []
    for card, (name, methods) in _GUIDE.items():
        verdicts = [_verdict(by_id[name], method, card) for method in methods]
        rows.append([f"{card} GB", name, ", ".join(methods), "; ".join(verdicts)])
    text = (
        "## A widespread table, and what the plan says\n\n"
        "Guides recommend these. Where one cannot work, the plan says what is needed.\n\n"
    )
    return text + _table(("GPU", "model", "recommended", "planned"), rows)


def _verdict(found: list[Way], method: str, card: int) -> str:
    own = [way for way in found if way.method == method]
    fit = fitting(own, card * _GIB)
    if fit:
        return f"{method}: yes, {_need(fit[0])}"
    return f"**{method}: no**, {' or '.join(_need(way) for way in own)}"


def _all(planned: dict[KnownModel, list[Way]]) -> str:
    rows = []
    for model, found in planned.items():
        needs = [
            " or ".join(f"{way.total / _GIB:.1f}" for way in found if way.method == method) or "?"
            for method in METHODS
        ]
        size = f"{model.parameters / 1e9:.1f}B" if model.parameters else "?"
        licence = ", ".join(text for text in (model.licence, model.access) if text)
        prompt = f"`{model.chat_template}`" if model.chat_template else model.prompt
        note = model.note or ""
        rows.append([model.id, size, *needs, licence, model.tokenizer, prompt, model.sure, note])
    heads = ("model", "size", "full, full\\*", "lora", "qlora", "licence", "tokenizer", "prompt")
    table = _table((*heads, "sure", "note"), rows).replace("<think>", "&lt;think&gt;")
    return (
        f"## All models known by name\n\nGiB of one GPU.\n\n{table.replace('<NL>', '&lt;NL&gt;')}"
    )


_SURE = """\
*sure*: `read`, from the model's card or config.json; `listed`, from the hub's listing and the base
that it is made of; `memory`, to be checked, and not planned. `tatara plan llm-lora
model.name=OWNER/NAME` reads the config.json of any model of the hub. A licence or a form to accept
may change: the hub's page says."""


def recipes() -> dict[Path, str]:
    """Recipes with a plan in a comment → their text with that line as it is planned today."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").split("\n")
        if any(line.startswith(_MARK) for line in lines):
            new = plan_comment(path)
            found[path] = "\n".join(new if line.startswith(_MARK) else line for line in lines)
    return found
