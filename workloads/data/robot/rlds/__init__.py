"""RLDS datasets as tensorflow_datasets writes them, read without TensorFlow."""
