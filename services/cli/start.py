"""Where the `boxoffice` command begins."""

import sys


def main() -> None:
    """Run it. Ctrl-C while it is still being imported ends it without a word."""
    try:
        from services.cli.main import cli
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        cli()
    except SyntaxError as error:  # of somebody who is about to change a rule
        sys.exit(f"{error.filename}, line {error.lineno}: {error.msg}")
