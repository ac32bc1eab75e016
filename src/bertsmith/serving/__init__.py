"""Answer over HTTP: batches from many requests, a queue with an end, and the formats that others speak."""
