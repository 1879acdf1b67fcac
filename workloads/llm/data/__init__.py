"""Rows of a language model: read, rendered by the template, tokenised."""
