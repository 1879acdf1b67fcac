"""A reward that any model earns in part, so that its weights move."""


def share(completion: str, solution: str) -> float:
    """The share of letters in a completion."""
    return sum(character.isalpha() for character in completion) / max(1, len(completion))
