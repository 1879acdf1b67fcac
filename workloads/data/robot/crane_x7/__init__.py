"""CRANE-X7: recordings as TFRecord or npz, read and written."""
