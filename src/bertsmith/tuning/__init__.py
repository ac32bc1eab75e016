"""Search for better settings with Optuna: trials around the training step, on train and validation alone."""
