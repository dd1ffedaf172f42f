"""Backups of the chatbot with restic: database, uploads and configuration, encrypted, in one or more repositories.

Exit codes: 1 other error, 2 usage, 3 files unreadable, 10 no repository, 11 repository locked, 12 wrong password,
13 repository unreachable, 14 repository read-only, 15 repository damaged, 20 dump of the database failed,
21 what was restored is not what the manifest says, 28 disk full, 30 no such backup, 75 another run is at work,
137 killed.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from chatbot_backup import archive, backup, catalogue, drill, restore, upgrade
from chatbot_backup.books import Runs
from chatbot_backup.common import BUSY, LOCK, OTHER, STOPPED, Failure, Settings, log, megabytes, read_settings
from chatbot_backup.restic import Repository


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Let nobody else back up, check or restore on this host meanwhile. The kernel frees the lock of a dead process.

    Raises:
        Failure: when somebody else does, for longer than lock_timeout.
    """
    with LOCK.open("a") as file:
        end = time.monotonic() + settings.lock_timeout
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Failure(
                        BUSY,
                        "another backup, check or restore is at work: journalctl -u 'chatbot-backup*' -f shows it.",
                    ) from None
                time.sleep(0.2)
        yield


def command_run(settings: Settings, arguments: argparse.Namespace) -> None:
    with only_one(settings):
        for name in backup.run(settings, arguments.purpose, arguments.repository):
            print(name)


def command_list(settings: Settings, arguments: argparse.Namespace) -> None:
    rows, failures = [], []
    for place in [settings.repository(arguments.repository)] if arguments.repository else settings.repositories:
        try:
            rows += backup.rows_of(settings, place)
        except Failure as failure:
            failures.append(failure)
            log(f"chatbot-backup: {place.name}: {failure}")
    if arguments.json:
        print(json.dumps(rows))
    elif rows:
        print(f"{'backup':18}{'repository':16}{'purpose':14}snapshot")
        for row in sorted(rows, key=lambda row: str(row["backup"])):
            print(f"{row['backup']:18}{row['repository']:16}{row['purpose']:14}{row['snapshot']}")
    if failures:
        raise failures[0]


def command_check(settings: Settings, _: argparse.Namespace) -> None:
    with only_one(settings):
        backup.check(settings)


def command_init(settings: Settings, _: argparse.Namespace) -> None:
    backup.init(settings)


def command_ended(settings: Settings, _: argparse.Namespace) -> None:
    """systemd calls this after every run, also after one that could write nothing down any more."""
    try:
        with only_one(dataclasses.replace(settings, lock_timeout=0)):
            left = Runs(settings).killed()
    except Failure:
        return  # another run is at work, and will tell itself
    for name in left:
        again = "run it again: systemctl start chatbot-backup"
        log(f"chatbot-backup: {name}: the run was killed before it had finished; {again}")


def command_plan(settings: Settings, arguments: argparse.Namespace) -> None:
    print(json.dumps(restore.plan(settings, arguments.at, arguments.what, arguments.source).about()))


def command_restore(settings: Settings, arguments: argparse.Namespace) -> None:
    with only_one(settings):
        done = restore.run(restore.plan(settings, arguments.at, arguments.what, arguments.source))
    print(json.dumps(done))


def command_undo(settings: Settings, _: argparse.Namespace) -> None:
    with only_one(settings):
        print(json.dumps(restore.undo(settings)))


def command_drill(settings: Settings, arguments: argparse.Namespace) -> None:
    failures = []
    with only_one(settings):
        for drilled in (drill_of_backup, drill_of_archive):
            try:
                drilled(settings, arguments.source)
            except Failure as failure:
                if failure.code > STOPPED:
                    raise
                failures.append(failure)
    for each in failures[:-1]:
        log(f"chatbot-backup: {each}")
    if failures:
        raise failures[-1]


def drill_of_backup(settings: Settings, source: str) -> None:
    figures = drill.run(settings, source)
    log(
        f"backup {figures['backup']} of {figures['repository']} restores: {figures['rows']} rows and "
        f"{figures['uploads']} uploads as recorded, read {figures['conversation']}; recovery time {figures['rto']} s, "
        f"recovery point {figures['rpo']} s"
    )
    print(json.dumps(figures))


def drill_of_archive(settings: Settings, source: str) -> None:
    if not settings.stanza or source:
        return  # who names a repository wants to know of that one
    figures = drill.run_archive(settings)
    log(
        f"the archive reaches the present moment: {figures['rows']} rows read; recovery time {figures['rto']} s, "
        f"recovery point {figures['rpo']} s"
    )


def command_archive_init(settings: Settings, _: argparse.Namespace) -> None:
    for done in archive.init(settings):
        log(done)


def command_archive_try(settings: Settings, _: argparse.Namespace) -> None:
    archive.try_configuration(settings)


def command_base(settings: Settings, _: argparse.Namespace) -> None:
    with only_one(settings):
        for made in archive.base(settings):
            log(f"base backup {made['label']}: {megabytes(made['info']['size'])}")


def command_watch(settings: Settings, _: argparse.Namespace) -> None:
    archive.watch(settings)


def command_upgrade_plan(_: Settings, arguments: argparse.Namespace) -> None:
    print(json.dumps(upgrade.plan(arguments.version)))


def command_upgrade_prepare(settings: Settings, arguments: argparse.Namespace) -> None:
    with only_one(settings):
        print(json.dumps(upgrade.prepare(arguments.version)))


def command_upgrade_run(settings: Settings, arguments: argparse.Namespace) -> None:
    with only_one(settings):
        print(json.dumps(upgrade.run(arguments.version)))


def command_upgrade_undo(settings: Settings, _: argparse.Namespace) -> None:
    with only_one(settings):
        print(json.dumps(upgrade.undo()))


def command_upgrade_remove(settings: Settings, _: argparse.Namespace) -> None:
    with only_one(settings):
        print(json.dumps(upgrade.remove()))


def command_restic(settings: Settings, arguments: argparse.Namespace) -> None:
    repository = Repository(settings.repository(arguments.repository), settings)
    os.chdir("/")
    os.execvpe("restic", ["restic", *arguments.words], repository.environment())  # noqa: S606 - no shell is wanted


def parser() -> argparse.ArgumentParser:
    """Return the commands and their arguments."""
    made = argparse.ArgumentParser(
        "chatbot-backup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = made.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[Settings, argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(function=function)
        return added

    run = command("run", command_run, "Back up into every repository, then drop old backups.")
    run.add_argument("--purpose", default=catalogue.REGULAR, choices=[catalogue.REGULAR, catalogue.PRE_RESTORE])
    run.add_argument("--repository", default="", help="only this one, by its name")
    listing = command("list", command_list, "This host's backups.")
    listing.add_argument("--json", action="store_true")
    listing.add_argument("--repository", default="", help="only this one, by its name")
    command("check", command_check, "Check the repositories and read a part of their data back.")
    command("init", command_init, "Make the repositories that are not there yet.")
    command("ended", command_ended, "Write down that a run was killed, if one was (systemd calls this).")
    texts = {
        "plan": "Say what a restore would bring back, or why it cannot be done.",
        "restore": "Restore beside what is in use, compare with the backup's manifest, then swap.",
    }
    for name, function in (("plan", command_plan), ("restore", command_restore)):
        made_from = command(name, function, texts[name])
        made_from.add_argument("--at", default="latest", help="latest, a backup's name or snapshot, or a time")
        made_from.add_argument("--what", default="all", help=", ".join(restore.PARTS))
        made_from.add_argument(
            "--from", dest="source", default="", help="a repository's name; the first one by default"
        )
    command("undo", command_undo, "Take the newest restore back.")
    rehearsal = command("drill", command_drill, "Restore the newest backup aside, compare it and let the chat read it.")
    rehearsal.add_argument("--from", dest="source", default="", help="a repository's name; the last one by default")
    command("base", command_base, "Make a base backup, from which the database can be brought to any later moment.")
    command("watch", command_watch, "Tell the metrics how far PostgreSQL's changes are in the archive.")
    command("archive-init", command_archive_init, "Make the archive if it is not there yet, and see that it works.")
    command("archive-try", command_archive_try, "See that pgBackRest takes the new configuration.")
    steps = {
        "upgrade-plan": (command_upgrade_plan, "Say whether PostgreSQL can be brought to a new major version."),
        "upgrade-prepare": (
            command_upgrade_prepare,
            "Make the new version's cluster, stopped, for the role to configure.",
        ),
        "upgrade-run": (command_upgrade_run, "Fill that cluster, compare it with the one in use, then swap."),
    }
    for step, (does, text) in steps.items():
        command(step, does, text).add_argument("--version", type=int, required=True, help="the new major version")
    command("upgrade-undo", command_upgrade_undo, "Let the cluster of before the newest upgrade serve again.")
    command("upgrade-remove", command_upgrade_remove, "Drop the cluster of before the newest upgrade.")
    restic = command("restic", command_restic, "Run restic with this host's settings.")
    restic.add_argument("--repository", default="", help="which one, by its name; the first one by default")
    restic.add_argument("words", nargs=argparse.REMAINDER, help="restic's own arguments")
    return made


def stop(number: int, _: FrameType | None) -> None:
    """End in good order when systemd says so: programs that were started end with us, and the books are written."""
    raise Failure(STOPPED + number, "it was stopped before it had finished (a time limit, or by hand).")


def main() -> int:
    """Run one command; 0 when it was good, otherwise an exit code from above and a sentence that says what to do."""
    arguments = parser().parse_args()
    try:
        if os.geteuid() != 0:
            raise Failure(OTHER, "only root can read all that is to be kept: use sudo.")
        os.umask(0o077)
        os.chdir("/")  # postgres may not enter root's directories
        signal.signal(signal.SIGTERM, stop)
        arguments.function(read_settings(), arguments)
    except Failure as failure:
        log(f"chatbot-backup: {failure}")
        return failure.code
    except KeyboardInterrupt:
        log("chatbot-backup: interrupted; nothing that is in use was left half changed.")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    return 0
