"""The verbs of `tatara`, one module each."""
