"""Facts of this host for scripts and doctor: a checkout, its containers, its newest run.

The standard library alone (Python 3.10 is enough): it runs before anything is installed.
Scripts call `python3 -m workloads.host COMMAND …`.
"""
