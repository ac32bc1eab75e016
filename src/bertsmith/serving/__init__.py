"""Serve a classifier over HTTP, in the formats of text-embeddings-inference and Hugging Face's inference API."""
