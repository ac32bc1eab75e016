"""Steps 3 and 4: settings that fit the data, and fine-tuning as a stream of events."""
