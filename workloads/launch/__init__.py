"""From one command to the ranks of every node: supervisor, rendezvous, torchrun, ranks."""
