"""RLDS data sets as tensorflow_datasets writes them, read without TensorFlow."""
