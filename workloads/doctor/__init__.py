"""What this machine can run and what it lacks; needs only Python's standard library.

`tatara doctor [PROFILE]`, or `python3 -m workloads.doctor` where nothing is installed yet. Every
module here loads without another package (Python 3.10 is enough); what needs a profile's settings
says so where they cannot be read.
"""
