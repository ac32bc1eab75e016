"""Checkpoints, tokenizers and the forward pass. The only package that knows the names of Hugging Face's models."""
