"""Commands for operators: `python -m chatbot migrate` and `python -m chatbot settings`."""

import argparse
import json
import logging.config
import sys

from sqlalchemy.exc import SQLAlchemyError

from chatbot.logs import logging_config
from chatbot.migrate import migrate
from chatbot.settings import SettingsError, load_settings


def main() -> int:
    """Run one command; 0 when it succeeded, 1 and one line on standard error otherwise."""
    parser = argparse.ArgumentParser(prog="python -m chatbot", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="upgrade the database schema to this release's")
    commands.add_parser("settings", help="check the settings and print them without secrets")
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        logging.config.dictConfig(logging_config(settings.log_level))
        if arguments.command == "migrate":
            print(f"schema: {migrate(settings)}")
        else:
            print(json.dumps(settings.public(), indent=2))
    except SettingsError as error:
        print(f"chatbot: {error}", file=sys.stderr)
        return 1
    except SQLAlchemyError as error:
        # The driver's first line names the cause and holds no password.
        print(f"chatbot: the schema was not changed: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
