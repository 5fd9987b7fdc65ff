"""The command line. Exit status: 0 done, 1 a problem (one clear line each on stderr), 2 usage."""

from __future__ import annotations

import signal
import sys

if sys.argv[1:2] == ["run"]:
    # Until there are handlers, for which the imports below alone take a third of a second, these
    # would end the process. Kept back, they are taken as soon as it can (``Daemon``).
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGUSR1))

import argparse
import asyncio
import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from sipush import cli_store
from sipush.config import Config, load
from sipush.config_checks import warnings
from sipush.errors import ConfigError, SipushError

DEFAULT_CONFIG = Path("/etc/sipush/sipush.toml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say and return the exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        status = command(options)
        print(end="", flush=True)  # so that it fails here and not at the exit
        return status
    except BrokenPipeError:  # who reads has had enough: ``sipush user list | head``
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ConfigError as error:
        print(*(f"sipush: {problem}" for problem in error.problems), sep="\n", file=sys.stderr)
    except SipushError as error:
        print(f"sipush: {error}", file=sys.stderr)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"sipush: {where}{error.strerror or error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("sipush: interrupted", file=sys.stderr)
    return 1


def _run(options: argparse.Namespace) -> int:
    from sipush import daemon  # noqa: PLC0415 - `sipush user` needs no push libraries

    return daemon.run(options.config, show_banner=options.banner)


def _check(options: argparse.Namespace) -> int:
    from sipush import daemon  # noqa: PLC0415

    config = load(options.config)
    certificates = daemon.check(config)
    now = datetime.now(UTC)
    print(f"{options.config} is good.")
    for name, text in _summary(config):
        print(f"  {name:<8} {text}")
    for each in certificates:
        print(f"  {'tls':<8} {each.file}, {(each.expires - now).days} days left")
    due = [f"{each.file} must be renewed" for each in certificates if each.is_due(now)]
    for text in [*warnings(config), *due]:
        print(f"  warning  {text}")
    return 0


def _summary(config: Config) -> list[tuple[str, str]]:
    doors = [f"{door.transport} {door.address} port {door.port}" for door in config.listen]
    place = {
        "sqlite": str(config.store.sqlite.path),
        "redis": config.store.redis.place,
        "memory": "forgets at exit",
    }[config.store.type]
    services = {
        app_id: [name for name in ("apns", "fcm", "webpush", "webhook") if getattr(app, name)]
        for app_id, app in config.apps.items()
    }
    apps = [f"{app_id} ({', '.join(names)})" for app_id, names in services.items()]
    return [
        ("listens", ", ".join(doors)),
        ("domains", ", ".join(config.sip.domains)),
        ("store", f"{config.store.type}, {place}"),
        ("apps", ", ".join(apps) or "none: nobody can be woken"),
        ("users", f"{len(config.users)} here; `sipush user list` shows those in the store too"),
        ("groups", ", ".join(config.groups) or "none"),
        ("sos", ", ".join(config.emergency.route) or "no route: emergency calls go nowhere"),
        ("peers", ", ".join(f"{peer.name} ({peer.address})" for peer in config.peers) or "none"),
    ]


def _demo(_options: argparse.Namespace) -> int:
    from sipush.demo import story  # noqa: PLC0415 - brings phones and push services along

    return story.run()


def _version(_options: argparse.Namespace) -> int:
    print(f"sipush {version('sipush')}")
    return 0


def _on_store(
    work: Callable[[argparse.Namespace, Config], cli_store.Work],
) -> Callable[[argparse.Namespace], int]:
    """A command that works on the store the configuration names."""

    def command(options: argparse.Namespace) -> int:
        config = load(options.config)
        return asyncio.run(cli_store.on_store(config, work(options, config)))

    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sipush",
        description="A SIP registrar and push-triggering proxy.",
        epilog="Exit status: 0 done, 1 a problem, which stderr names, 2 wrong arguments.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    configured = argparse.ArgumentParser(add_help=False)
    configured.add_argument(
        "--config",
        type=Path,
        default=DEFAULT_CONFIG,
        metavar="FILE",
        help=f"the configuration ({DEFAULT_CONFIG})",
    )

    def add(
        name: str, text: str, command: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        parser = commands.add_parser(name, help=text, description=text, parents=[configured])
        parser.set_defaults(command=command)
        return parser

    run = add("run", "Run the server; SIGHUP reloads the configuration, SIGTERM drains.", _run)
    run.add_argument(
        "--banner",
        action=argparse.BooleanOptionalAction,
        default=sys.stdout is not None and sys.stdout.isatty(),
        help="say in a few lines what is served (default: on a terminal)",
    )
    add("check", "Tell everything that is wrong with a configuration.", _check)
    text = "Show a killed phone that rings, on loopback."
    demo = commands.add_parser("demo", help=text, description=text)
    demo.set_defaults(command=_demo)
    text = "Add, list and remove users."
    _add_user_commands(commands.add_parser("user", help=text, description=text), configured)
    text = "List registered devices, awake and asleep."
    bindings = commands.add_parser("bindings", help=text, description=text, parents=[configured])
    bindings.add_argument("aor", nargs="?", help=f"of this user only: {_AOR_HELP}")
    bindings.set_defaults(command=_on_store(cli_store.list_bindings))
    text = "List bans and lift them."
    _add_ban_commands(commands.add_parser("bans", help=text, description=text), configured)
    text = "Print the version."
    commands.add_parser("version", help=text, description=text).set_defaults(command=_version)
    return parser


_AOR_HELP = "101@example.com, or 101 for the first domain"


def _add_ban_commands(parser: argparse.ArgumentParser, configured: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "List addresses banned for failed sign-ins."
    list_ = commands.add_parser("list", help=text, description=text, parents=[configured])
    list_.set_defaults(command=_on_store(cli_store.list_bans))
    text = "Hear a banned address again."
    lift = commands.add_parser("lift", help=text, description=text, parents=[configured])
    lift.add_argument("source", metavar="ADDRESS", help="as the list prints it")
    lift.set_defaults(command=_on_store(cli_store.lift_ban))


def _add_user_commands(
    parser: argparse.ArgumentParser, configured: argparse.ArgumentParser
) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = commands.add_parser(
        "add",
        help="Add a user or replace one.",
        description="Add a user or replace one. The password is asked for, or read from stdin; "
        "only its hashes are stored.",
        parents=[configured],
    )
    add.add_argument("aor", help=_AOR_HELP)
    source = add.add_mutually_exclusive_group()
    source.add_argument("--password-file", type=Path, metavar="FILE", help="take its first line")
    source.add_argument("--generate", action="store_true", help="make a password and print it")
    add.add_argument("--no-hold", action="store_true", help="calls do not wait for this user")
    add.add_argument("--hold-seconds", type=float, metavar="S", help="how long calls wait")
    add.add_argument("--fallback", default="", metavar="URI", help="who gets unanswered calls")
    add.set_defaults(command=_on_store(cli_store.add_user))

    text = "Remove a user of the store."
    remove = commands.add_parser("remove", help=text, description=text, parents=[configured])
    remove.add_argument("aor", help=_AOR_HELP)
    remove.set_defaults(command=_on_store(cli_store.remove_user))

    import_ = commands.add_parser(
        "import",
        help="Add users from a CSV file.",
        description="Add the users of a CSV file in UTF-8, all or none: lines of aor,password or "
        "aor,ha1_md5,ha1_sha256 (either may be empty); a first line may name the columns. Users "
        "who are there already get the new password and keep their hold and fallback.",
        parents=[configured],
    )
    import_.add_argument("file", type=Path, help="the CSV file")
    import_.set_defaults(command=_on_store(cli_store.import_users))

    text = "List users, of the configuration file and of the store."
    list_ = commands.add_parser("list", help=text, description=text, parents=[configured])
    list_.set_defaults(command=_on_store(cli_store.list_users))


if __name__ == "__main__":
    sys.exit(main())
