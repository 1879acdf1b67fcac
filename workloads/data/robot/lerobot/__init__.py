"""LeRobot datasets v2.1 and v3.0: read with pyarrow and PyAV, written as v3.0."""
