"""What several groups of tests need: machines, runs, hubs and tiny models."""
