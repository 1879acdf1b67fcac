"""Makes the demo's rows: one-step word problems in GSM8K's form, which a tiny model can learn.

    python -m workloads.llm.arithmetic [FILE]

No two questions are equal, so no held-out one is a training row; only the facts, such as 3 x 4,
occur again, in a story that the model has not seen.
The rows are a fixed function of the seed: the same file each time.
"""

import json
import sys
from pathlib import Path
from random import Random

ROWS, SEED, MOST = 3200, 1, 9
NAMES = (
    "Aiko", "Ben", "Chika", "Dana", "Emi", "Goro", "Hana", "Ivan", "Jun", "Kenji",
    "Lena", "Minho", "Nao", "Olga", "Paul", "Rin", "Seoyeon", "Tomo", "Uma", "Yuki",
)  # fmt: skip
THINGS = (
    "apples", "books", "cards", "coins", "eggs", "flowers", "lemons", "oranges", "pens", "stamps",
)  # fmt: skip
STORIES = {
    "+": (
        "{name} has {a} {things} and gets {b} more. How many {things} does {name} have now?",
        "{name} buys {a} {things} today and {b} {things} tomorrow. How many {things} is that?",
        "There are {a} {things} on the table. {name} puts {b} more there. How many {things} are "
        "on the table?",
    ),
    "-": (
        "{name} has {a} {things} and gives away {b}. How many {things} are left?",
        "There are {a} {things} in a box. {name} takes {b} out. How many {things} stay in the box?",
        "{name} had {a} {things} and lost {b}. How many {things} does {name} still have?",
    ),
    "*": (
        "{name} has {a} bags with {b} {things} each. How many {things} does {name} have?",
        "{name} fills {a} boxes. Each box holds {b} {things}. How many {things} are there?",
        "A shelf has {a} rows of {b} {things}. {name} counts them. How many {things} are there?",
    ),
}


def rows(count: int = ROWS, seed: int = SEED) -> list[dict[str, str]]:
    """`count` rows of question and answer, no question twice."""
    random, found = Random(seed), dict[str, dict[str, str]]()
    while len(found) < count:
        row = _row(random)
        found.setdefault(row["question"], row)
    return list(found.values())


def _row(random: Random) -> dict[str, str]:
    kind = random.choice(list(STORIES))
    a, b = random.randint(1, MOST), random.randint(1, MOST)
    if kind == "-":
        a, b = max(a, b), min(a, b)
    result = {"+": a + b, "-": a - b, "*": a * b}[kind]
    story = random.choice(STORIES[kind])
    question = story.format(name=random.choice(NAMES), things=random.choice(THINGS), a=a, b=b)
    sign = "x" if kind == "*" else kind
    answer = f"{a} {sign} {b} = <<{a}{kind}{b}={result}>>{result}\n#### {result}"
    return {"question": question, "answer": answer}


def write(file: Path) -> None:
    """One JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("data/demo/arithmetic.jsonl"))
