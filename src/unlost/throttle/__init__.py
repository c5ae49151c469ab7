"""Circuit breakers and limits that all workers share, in the store."""
