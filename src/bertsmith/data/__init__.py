"""Step 1: read a table, link its labels, inspect, clean and split it. Knows nothing of models."""
