"""The report, the model card and the study page, written from a folder on disk."""
