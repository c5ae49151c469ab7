"""Topology as code: what the broker should look like, as values. No I/O beyond reading YAML files."""
