"""``python -m bertsmith``."""

from bertsmith.cli.app import main

main()
