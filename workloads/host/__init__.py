"""What the scripts and the doctor ask of this host: a checkout, its containers, its newest run.

The standard library alone (Python 3.10 is enough): it runs before anything is installed.
`python3 -m workloads.host COMMAND …` is how a script asks.
"""
