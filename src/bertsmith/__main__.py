"""``python -m bertsmith``, and the entry point of the ``bertsmith`` script."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C exits with 130, also while the commands are imported."""
    try:
        from bertsmith.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
