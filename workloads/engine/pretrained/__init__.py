"""Pretrained models: their files, how they are loaded, adapters, weights."""
