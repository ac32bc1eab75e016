"""Device, CPU cores, memory and micro-batches. Independent of any model."""
