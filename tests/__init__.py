"""The tests of unlost. ``tests/README.md`` says where a new one goes."""
