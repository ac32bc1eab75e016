"""Where and how things are computed: device, cores, memory, micro-batches. Knows no model."""
