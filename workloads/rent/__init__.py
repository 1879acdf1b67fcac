"""A machine by the hour: rented or one's own, trained on, backed up, verified, and ended.

Speaks HTTP to a provider, and to machines by the programs ssh and rsync; nothing else is needed. A
lease is a file (`ledger.py`), so that another process can continue after a killed `tatara rent`.
"""
