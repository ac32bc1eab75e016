"""Where the packages meet: train, evaluate, tune, several seeds."""
