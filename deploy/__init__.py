"""Ways to run the service beyond one process."""
