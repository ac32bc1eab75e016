"""Read, inspect, clean and split tables of labelled texts."""
