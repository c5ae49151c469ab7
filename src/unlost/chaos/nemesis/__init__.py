"""Nemeses: what injures the system while it works. Each records every injury and heals at its end."""
