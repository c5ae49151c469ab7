"""How a running system shows itself: log context."""
