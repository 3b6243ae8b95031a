"""The `boxoffice` command."""

import gc
import os
import sys
from pathlib import Path
from typing import Any

import rich_click as click
from rich.markup import escape

from common.telemetry import configure_logging
from services.cli.base import (
    as_user,
    at_url,
    console,
    in_folder,
    log_as,
    progress_bars,
    run,
    settings_here,
    url_here,
    who_here,
)
from services.cli.dead import dead
from services.cli.events import events
from services.cli.projections import projections
from services.cli.replay import replay


class Interruptible(click.RichGroup):
    """Commands that Ctrl-C ends without a word, with the exit code that shells give it."""

    def invoke(self, ctx: click.Context) -> Any:
        gc.disable()  # until `run`: a command first imports what it needs, which is there to stay
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(130)
        finally:
            gc.enable()


@click.group(cls=Interruptible)
@click.version_option(package_name="boxoffice")
def cli() -> None:
    """Boxoffice: event-sourced ticket sales on NATS JetStream."""


@cli.command()
@click.option("--port", type=click.IntRange(1, 65535), help="Where to listen, or the next free one. [default: 8080]")
@click.option(
    "--data", default=".boxoffice", show_default=True, type=click.Path(path_type=Path), help="Where data stays."
)
@click.option("--fresh", is_flag=True, help="Delete the data first.")
def up(port: int | None, data: Path, fresh: bool) -> None:
    """Start everything here: NATS, Postgres and every service behind one address."""
    from services.cli.embedded import up

    log_as("warning", human=True)
    run(up(port, data, fresh=fresh, console=console))


@cli.command()
@click.argument("names", nargs=-1, required=True, metavar="SERVICE...")
@click.option("--port", type=click.IntRange(1, 65535), help="Where to listen, instead of BOXOFFICE_PORT.")
@click.option("--reload", is_flag=True, help="Start again whenever a file of the code changes, for development.")
def serve(names: tuple[str, ...], port: int | None, reload: bool) -> None:
    """Run one service, or some, as a process of its own."""
    from services.cli.system import SERVICES
    from services.cli.system import serve as serve_services

    if unknown := sorted(set(names) - set(SERVICES)):
        raise click.BadParameter(f"no service {', '.join(unknown)}; there are {', '.join(SERVICES)}.")
    environment = dict(os.environ)
    if port is not None:
        environment["BOXOFFICE_PORT"] = str(port)
    log_as("info")
    if reload:
        from services.cli.reload import serve_again

        os.environ.update(environment)  # which the children have
        serve_again(names)
    else:
        run(serve_services(names, environment))


@cli.command()
@in_folder
def migrate(data: Path) -> None:
    """Create or change streams, durable consumers and read models as this code has them; safe to repeat."""
    from services.cli.system import migrate

    configure_logging("warning")
    if not run(migrate(settings_here(data), console.print)):
        console.print("nothing to change")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace the backup that is there, once the new one is complete.")
@click.option("--verify", is_flag=True, help="Only check the backup that is there, and say what it holds.")
@in_folder
def backup(folder: Path, force: bool, verify: bool, data: Path) -> None:
    """Copy the whole log to a FOLDER: every stream and how far each listener has come, while the system goes on."""
    from services.cli.backup import back_up, tell, verified

    configure_logging("error")
    with progress_bars(sizes=True) as progress:
        if verify:
            found = run(verified(folder, progress))
        else:
            found = run(back_up(settings_here(data), folder, progress, force=force))
    tell(found, console)


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--replace", is_flag=True, help="Lose the events that the backup does not have.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@click.option("--rebuild/--no-rebuild", default=True, show_default=True, help="Make the read models anew.")
@in_folder
def restore(folder: Path, replace: bool, yes: bool, rebuild: bool, data: Path) -> None:
    """Bring the log back as it is in the backup in FOLDER. Services may run: they hear of it, and answer 503 then."""
    from services.cli.backup import lost_by, restore_log, tell, told_losses, verified
    from services.cli.system import READ_MODELS
    from services.cli.system import rebuild as rebuild_read_model

    configure_logging("error")
    settings, folder = settings_here(data), folder.absolute()  # what says that it was cut off names it
    with progress_bars(sizes=True) as progress:
        found = run(verified(folder, progress))
    tell(found, console)
    if lost := run(lost_by(settings, found)):
        if not replace:
            raise click.ClickException(f"{told_losses(lost)} Restore with --replace if they are to be lost.")
        if not yes:
            click.confirm(f"{told_losses(lost)} Go on?", abort=True)
    with progress_bars(sizes=True) as progress:
        run(restore_log(settings, folder, found, progress, console.print))
    for name in READ_MODELS if rebuild else ():
        with progress_bars(name) as progress:
            run(rebuild_read_model(name, settings, progress))
    mend = "" if rebuild else "; run `boxoffice projections rebuild` for each read model: until then they stand still"
    console.print(f"restored the log as it was on {found.at:%Y-%m-%d %H:%M:%S}Z{mend}")


@cli.command()
@at_url
@in_folder
def demo(url: str | None, data: Path) -> None:
    """Play a whole sale against the running system: list, two buyers, one pays, one lets it expire."""
    from services.cli.demo import Unexpected
    from services.cli.demo import demo as play

    try:
        run(play(url_here(url, data), console))
    except Unexpected as error:
        raise click.ClickException(str(error)) from error


@cli.command()
@in_folder
def doctor(data: Path) -> None:
    """Say what is wrong with this setup, and how to mend it."""
    from services.cli.doctor import examine
    from services.cli.embedded import environment_here

    signs = {"well": "[green]✓[/]", "note": "[yellow]![/]", "wrong": "[red]✗[/]"}

    async def tell() -> int:
        mends, mend = set(), ""
        async for finding in examine(environment_here(data=data), data):
            if mend and finding.mend != mend:  # what one command mends is told together
                console.print(f"  [dim]→[/] {escape(mend)}")
            console.print(f"{signs[finding.state]} {escape(finding.what)}")
            mend = finding.mend
            if finding.state == "wrong":
                mends.add(mend)
        if mend:
            console.print(f"  [dim]→[/] {escape(mend)}")
        return len(mends)

    configure_logging("error")
    if wrong := run(tell()):
        raise click.ClickException(f"{wrong} thing{'s' if wrong > 1 else ''} to do.")
    console.print("All is well.")


@cli.group()
@at_url
@as_user("sam")
@in_folder
@click.pass_context
def batch(context: click.Context, url: str | None, user: str | None, data: Path) -> None:
    """Operations in bulk: hand in a file, watch it, read its report."""
    from services.cli.batch import batches_at

    address, who = url_here(url, data), who_here(user, "sam")
    context.obj = lambda: batches_at(address, who, console)


@batch.command("submit")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--kind", required=True, help="What its rows are, such as tickets.create.")
@click.option("--priority", type=click.Choice(["high", "normal", "low"]), default="normal", show_default=True)
@click.option("--on-invalid", type=click.Choice(["skip", "reject"]), default="skip", show_default=True)
@click.option("--run-at", help="Not before this time (RFC 3339).")
@click.option("--watch/--no-watch", default=True, show_default=True, help="Wait until it is over.")
@click.pass_obj
def batch_submit(
    open_batches: Any, file: Path, kind: str, priority: str, on_invalid: str, run_at: str | None, watch: bool
) -> None:
    """Hand in a CSV or NDJSON file of operations, and watch it run; exit code 1 if not every row went well."""
    from services.cli.batch import submit

    options = {"priority": priority, "on_invalid": on_invalid} | ({"run_at": run_at} if run_at else {})

    async def hand_in() -> bool:
        async with open_batches() as batches:
            return await submit(batches, console, file, kind, options, watch=watch)

    if not run(hand_in()):
        sys.exit(1)


@batch.command("ls")
@click.pass_obj
def batch_ls(open_batches: Any) -> None:
    """Your newest batches."""
    from services.cli.batch import listed

    async def show() -> None:
        async with open_batches() as batches:
            await listed(batches, console)

    run(show())


@batch.command("show")
@click.argument("batch_id")
@click.option("--watch", is_flag=True, help="Wait until it is over.")
@click.pass_obj
def batch_show(open_batches: Any, batch_id: str, watch: bool) -> None:
    """One batch: its counts, and the first things that went wrong. Exit code 0 however it went."""

    async def show() -> None:
        async with open_batches() as batches:
            found = await batches.read(batch_id)
            await batches.tell(await batches.watch(found) if watch else found)

    run(show())


@batch.command("report")
@click.argument("batch_id")
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file instead of the terminal.")
@click.pass_obj
def batch_report(open_batches: Any, batch_id: str, output: Path | None) -> None:
    """What became of each row, as CSV."""
    from services.cli.batch import write_report

    async def write() -> None:
        async with open_batches() as batches:
            await write_report(batches, batch_id, output)

    run(write())


@batch.command("bad")
@click.argument("batch_id")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file instead of the terminal.")
@click.pass_obj
def batch_bad(open_batches: Any, batch_id: str, file: Path, output: Path | None) -> None:
    """The rows of the FILE handed in that were refused, have failed or did not run: mend them, hand them in again."""
    from services.cli.batch import write_bad_rows

    async def write() -> None:
        async with open_batches() as batches:
            await write_bad_rows(batches, batch_id, file, output)

    run(write())


@batch.command("cancel")
@click.argument("batch_id")
@click.pass_obj
def batch_cancel(open_batches: Any, batch_id: str) -> None:
    """Start nothing more of a batch."""

    async def cancel() -> None:
        async with open_batches() as batches:
            await batches.tell(await batches.act(batch_id, "cancel"))

    run(cancel())


@batch.command("retry")
@click.argument("batch_id")
@click.pass_obj
def batch_retry(open_batches: Any, batch_id: str) -> None:
    """Try again what failed of a batch, and watch it; exit code 1 if not every row of it has gone well now."""
    from services.cli.batch import retry

    async def try_again() -> bool:
        async with open_batches() as batches:
            return await retry(batches, batch_id)

    if not run(try_again()):
        sys.exit(1)


@batch.command("kinds")
@click.pass_obj
def batch_kinds(open_batches: Any) -> None:
    """The kinds of operation that there are, which are paused, and what their rows hold."""
    from services.cli.batch import tell_kinds

    async def show() -> None:
        async with open_batches() as batches:
            tell_kinds(console, await batches.kinds())

    run(show())


@batch.command("pause")
@click.argument("kind")
@click.pass_obj
def batch_pause(open_batches: Any, kind: str) -> None:
    """Begin nothing more of a KIND, for operators (`boxoffice batch --user operator pause ...`)."""
    pause_or_resume(open_batches, kind, "pause")


@batch.command("resume")
@click.argument("kind")
@click.pass_obj
def batch_resume(open_batches: Any, kind: str) -> None:
    """Go on with a KIND, for operators."""
    pause_or_resume(open_batches, kind, "resume")


def pause_or_resume(open_batches: Any, kind: str, what: str) -> None:
    """Do so, and show what the kind is then."""
    from services.cli.batch import tell_kinds

    async def act() -> None:
        async with open_batches() as batches:
            tell_kinds(console, [await batches.pause_or_resume(kind, what)])

    run(act())


@cli.group()
def notifications() -> None:
    """What people are told."""


@notifications.command()
@at_url
@as_user("ada")
@click.option("--after", type=int, help="A cursor: what comes after it; by default what was not acknowledged.")
@in_folder
def tail(url: str | None, user: str | None, after: int | None, data: Path) -> None:
    """Show what somebody is told as it happens, over any loss of the connection."""
    from services.cli.notifications import tail as follow

    run(follow(url_here(url, data), who_here(user, "ada"), after, console))


@cli.command()
@click.argument("name")
@click.option("--aggregate", help="What the service keeps, in the singular: gift_card. [default: as it is called]")
@click.option("--plural", help="The same in the plural, where it is not as one would think: gift_cards.")
@click.option("--dry-run", is_flag=True, help="Show what would be changed, as a diff, and change nothing.")
@click.option("--force", is_flag=True, help="Also where not everything is committed.")
def new(name: str, aggregate: str | None, plural: str | None, dry_run: bool, force: bool) -> None:
    """Make a service of that NAME in this checkout: domain, doors, listener, read model, tests, and all entries."""
    from common.errors import DomainError
    from services.cli.new import Checkout, names_of, told

    checkout = Checkout()
    try:
        names = names_of(name, aggregate, plural)
        checkout.require_sources(Path.cwd().resolve(), dirty=force or dry_run)
        changes = checkout.changes(names)
        if dry_run:
            click.echo("".join(change.diff() for change in changes), nl=False)
            return
        checkout.write(changes)
    except (DomainError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(told(changes, names))


@cli.command()
@click.argument("server", type=click.Choice(["nats", "postgres"]))
def rights(server: str) -> None:
    """Print who may do what on a server of yours: users for NATS's configuration, or roles as SQL for Postgres.

    No password is printed. NATS takes them from its own environment, as NATS_PASSWORD_ORDERS and so on.
    """
    from common.rights import nats_configuration, postgres_configuration

    click.echo(nats_configuration() if server == "nats" else postgres_configuration(), nl=False)


@cli.command()
@click.option("--format", "form", type=click.Choice(["compose", "kubernetes"]), required=True, help="For whom.")
@click.option(
    "--folder",
    default="deploy/secrets",
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Where they are kept. What is there already stays as it is.",
)
@click.option("--nats-url", help="Where NATS is, for the services.  [default: where compose or k8s/ have it]")
@click.option(
    "--database-url",
    default="postgresql://postgres:5432/boxoffice",
    show_default=True,
    help="Where Postgres is, for the services.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), help="A file for the manifests, not the terminal.")
def secrets(form: str, folder: Path, nats_url: str | None, database_url: str, output: Path | None) -> None:
    """Make every secret that a deployment needs, once, and give them to compose or Kubernetes.

    For compose as files in the folder, which deploy/compose.yaml mounts; for Kubernetes as manifests of Secrets.
    To change one, delete its file in made/ there and run this again.
    """
    from services.cli.secrets import IN_COMPOSE, IN_KUBERNETES, for_compose, for_kubernetes, write

    nats_url = nats_url or (IN_COMPOSE if form == "compose" else IN_KUBERNETES)
    try:
        if form == "compose":
            for_compose(folder, nats_url, database_url)
            console.print(f"{folder} has every secret; keep a copy where only you get at it")
        elif output:
            write(output, for_kubernetes(folder, nats_url, database_url), mode=0o600)
        else:
            click.echo(for_kubernetes(folder, nats_url, database_url), nl=False)
    except OSError as error:
        raise click.ClickException(str(error)) from error


for group in (dead, events, projections, replay):
    cli.add_command(group)


if __name__ == "__main__":
    sys.exit(cli())
