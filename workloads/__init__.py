"""Tatara: training workloads that share one package, one configuration and one way to run."""
