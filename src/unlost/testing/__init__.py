"""For users' tests: where brokers come from."""
