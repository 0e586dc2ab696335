"""What runs in a server: many sequences that share one call of an engine."""
