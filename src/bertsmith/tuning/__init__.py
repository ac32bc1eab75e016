"""Hyperparameter search with Optuna: the configuration of a study, its search space and its storage."""
