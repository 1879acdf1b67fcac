"""Row lengths of a dataset, and the effect of padding or packing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RowLengths:
    """Tokens of a row: the mean and the longest."""

    mean: float
    longest: float

    def padded(self, rows: int, most: int) -> float:
        """Tokens of a row in a micro-batch of so many rows, padded to the longest of them.

        most: where longer rows are cut. As if lengths were spread evenly around the mean.
        """
        longest = min(self.longest, most)
        mean = min(self.mean, longest)
        return mean + (longest - mean) * (rows - 1) / (rows + 1)

    def rows_of(self, length: int) -> float:
        """Rows that a packed sequence of `length` tokens holds."""
        return max(1.0, length / min(self.mean, length))
