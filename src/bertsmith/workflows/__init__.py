"""One module per command or step. Each module connects the packages that it needs."""
