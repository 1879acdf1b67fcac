"""Warnings about all rows: solutions that answers are compared with, and images."""

from collections.abc import Callable, Iterator, Sequence

from workloads.grpo.data.images import first_animated, first_blank
from workloads.grpo.data.rows import Example
from workloads.grpo.rewards.answers import count_values, extract_answer

_LONG = 80  # characters: longer texts are a derivation, not an answer


def describe_solutions(examples: Sequence[Example]) -> list[str]:
    """One line for each kind of solution that accuracy rewards seldom match: number, first row."""
    texts = [extract_answer(example.solution) or example.solution for example in examples]
    values = [count_values(text) for text in texts]
    if not any(values):
        return []  # choices and words: fine
    sorts: list[tuple[str, Callable[[int], bool]]] = [
        ("hold several values, all of which an answer has to name", lambda row: values[row] > 1),
        ("hold no value where others do", lambda row: not values[row]),
        (
            f"are longer than {_LONG} characters; only their end counts",
            lambda row: _is_long(texts[row]),
        ),
    ]
    return list(_lines(examples, texts, sorts))


def _is_long(text: str) -> bool:
    return len(text) > _LONG


def _lines(
    examples: Sequence[Example],
    texts: Sequence[str],
    sorts: Sequence[tuple[str, Callable[[int], bool]]],
) -> Iterator[str]:
    for said, is_meant in sorts:
        rows = [row for row in range(len(texts)) if is_meant(row)]
        if rows:
            first = rows[0]
            yield (
                f"{len(rows):,} of {len(texts):,} solutions {said}; the first is "
                f"{texts[first][:_LONG]!r} at {examples[first].place}"
            )


def describe_images(examples: Sequence[Example], most: int) -> list[str]:
    """Lines for blank and for animated images, among at most `most` examples.

    These are spread over all.
    """
    seeing = [example for example in examples if example.images]
    chosen = seeing[:: max(1, -(-len(seeing) // most))]
    blank = [example for example in chosen if first_blank(example.images) is not None]
    moving = [example for example in chosen if first_animated(example.images) is not None]
    sorts = [
        ("of one colour, or nearly so, which shows nothing", blank),
        ("with several frames or pages, of which the first is shown", moving),
    ]
    return [
        f"{len(found):,} of {len(chosen):,} rows looked at have an image {said}; the first is at "
        f"{found[0].place}"
        for said, found in sorts
        if found
    ]
