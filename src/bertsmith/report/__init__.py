"""The page and the model card, drawn from a run folder on disk, so that they can be drawn again."""
