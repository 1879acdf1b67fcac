"""These tests need vLLM for CPUs, which scripts/vllm_environment.sh puts into a place apart."""

from importlib.util import find_spec

# Their modules import what only that place has.
collect_ignore_glob = [] if find_spec("vllm") else ["test_*.py"]
