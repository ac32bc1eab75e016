"""Fine-tuning: recipe, losses, training loop and checkpoints."""
