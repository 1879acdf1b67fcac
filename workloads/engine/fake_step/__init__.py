"""One training step on fake tensors: what a card would hold, without the card or the weights."""
