"""Public functions, with settings as keyword arguments."""
