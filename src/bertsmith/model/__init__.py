"""Step 2: resolve and load a checkpoint, tokenize. The only place that knows names of foreign models."""
