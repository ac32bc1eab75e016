"""Where and how things are computed: device, cores, memory, micro-batches. Does not depend on any model."""
