"""Commands for operators: `python -m chatbot --help`."""

import sys

import click
from sqlalchemy.exc import SQLAlchemyError

from chatbot.commands import cli
from chatbot.database import SchemaBehindError
from chatbot.migrate import MigrationError
from chatbot.settings import SettingsError


def main() -> int:
    """Run one command; 0 when it succeeded, 1 (2 for a wrong call) and one line on standard error otherwise."""
    try:
        result = cli.main(prog_name="python -m chatbot", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return 2
    except click.ClickException as error:
        print(f"chatbot: {error.format_message()}", file=sys.stderr)
    except click.Abort:
        print("chatbot: aborted", file=sys.stderr)
    except (SettingsError, SchemaBehindError, MigrationError) as error:
        print(f"chatbot: {error}", file=sys.stderr)
    except SQLAlchemyError as error:
        # The driver's first line names the cause and holds no password.
        print(f"chatbot: the database was not changed: {str(error).splitlines()[0]}", file=sys.stderr)
    else:
        return result if isinstance(result, int) else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
