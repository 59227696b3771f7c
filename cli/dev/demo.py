"""`arkloop demo`: the whole service once, from nothing to a real model's answer and its replay."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click
import httpx2
from rich.console import Console
from rich.text import Text

from arkloop.cli.client import event_stream
from arkloop.cli.client.client import Client
from arkloop.cli.client.event_stream import RunEvent
from arkloop.cli.client.server_address import ServerAddress
from arkloop.cli.dev import local_model
from arkloop.cli.dev.die_with_parent import dying_with_parent
from arkloop.cli.output import escaped, printable, shortened

READY_SECONDS = 300
STOP_SECONDS = 60
MESSAGE = "What is the capital of France? Answer in one short sentence."


class DemoFailed(Exception):
    """A promise was not kept; the message says which."""


@click.command()
def demo() -> None:
    """Start everything on free ports, ask a real model, replay the run, and stop again."""
    console = Console(highlight=False)
    began = time.monotonic()
    try:
        with _dev_server(console) as (url, key):
            _show_a_run(console, url, key)
    except DemoFailed as error:
        _print(console, f"The demo failed: {error}", "red")
        sys.exit(1)
    console.print(f"Done in {time.monotonic() - began:.1f} s.", style="bold")


@contextmanager
def _dev_server(console: Console) -> Iterator[tuple[str, str]]:
    """Run `arkloop dev` on a folder of its own; yields its base URL and an API key."""
    folder = Path(tempfile.mkdtemp(prefix="arkloop-demo-"))
    # Its Postgres may run as another user; what is secret inside has modes of its own.
    folder.chmod(0o711)
    log = folder / "output.log"
    arkloop = str(Path(sys.executable).with_name("arkloop"))
    argv = [arkloop, "dev", "--port", "0", "--data", str(folder / "data")]
    # The caller's own settings stay out, also those of a file .env: this is about a bare machine.
    environment = {n: v for n, v in os.environ.items() if not n.startswith("ARKLOOP_")}
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                dying_with_parent(argv, death_signal=signal.SIGTERM),
                env=environment,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            url = _wait_for_ready(console, process, log)
            yield url, (folder / "data" / "api-key").read_text().strip()
        except Exception:
            _print(console, log.read_text(errors="replace"), "dim")
            raise
        finally:
            status = _stop(console, process)
        if status != 0:
            raise DemoFailed(f"arkloop dev ended with status {status} instead of 0")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_ready(console: Console, process: subprocess.Popen[bytes], log: Path) -> str:
    console.print("Starting Postgres, Redis, the API, a worker and the model …", style="bold")
    began = time.monotonic()
    with console.status("starting") as status:
        while time.monotonic() < began + READY_SECONDS:
            lines = log.read_text(errors="replace").splitlines()
            for line in lines:
                if line.startswith("Ready on "):
                    console.print(f"{line} after {time.monotonic() - began:.1f} s")
                    return line.removeprefix("Ready on ")
            if process.poll() is not None:
                raise DemoFailed(f"arkloop dev ended with status {process.returncode}")
            status.update(Text(printable(lines[-1][:100]) if lines else "starting"))
            time.sleep(0.05)
    raise DemoFailed(f"arkloop dev was not ready after {READY_SECONDS} s")


def _stop(console: Console, process: subprocess.Popen[bytes]) -> int:
    began = time.monotonic()
    process.terminate()
    try:
        status = process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        raise DemoFailed(f"arkloop dev did not stop within {STOP_SECONDS} s") from None
    console.print(f"Stopped with exit status {status} after {time.monotonic() - began:.1f} s.")
    return status


def _show_a_run(console: Console, url: str, key: str) -> None:
    """Send a message, print the run's events live, and replay their second half.

    Raises:
        DemoFailed: something differs from what the service promises.
    """
    route = "local" if local_model.installed() else "scripted"
    if route == "scripted":
        console.print("No local model on this machine: using the scripted provider.")
    client = Client(ServerAddress(url, key))
    try:
        thread = client.post("/threads", {"title": "demo"})["id"]
        client.post(f"/threads/{thread}/messages", {"content": MESSAGE})
        console.print(f"\nTo the model (route {route}): {MESSAGE}\n", style="bold")
        run = client.post(f"/threads/{thread}/runs", {"route_id": route})["run_id"]
        live = []
        began = time.monotonic()
        for event in event_stream.follow(client, run, tell=partial(_print, console)):
            live.append(event)
            console.print(_line(event, time.monotonic() - began), soft_wrap=True)
        middle = len(live) // 2
        with event_stream.opened(client, run, middle, wait=True) as replayed:
            again = list(replayed.events)
    except (click.ClickException, httpx2.HTTPError) as error:
        raise DemoFailed(str(error) or type(error).__name__) from error
    _compare(console, live, again, middle)


def _compare(console: Console, live: list[RunEvent], again: list[RunEvent], middle: int) -> None:
    turns = [event.data["content"] for event in live if event.type == "message.completed"]
    _print(console, f"\nThe answer: {''.join(turns).strip()}", "bold")
    if not live or live[-1].type != "run.completed":
        raise DemoFailed(f"the run did not complete: {live[-1].text if live else 'no events'}")
    if [event.seq for event in live] != list(range(1, len(live) + 1)):
        raise DemoFailed("the events are not numbered from 1 without gaps")
    if [event.text for event in again] != [event.text for event in live[middle:]]:
        raise DemoFailed(f"the replay after event {middle} differs from the live stream")
    size = sum(len(event.text.encode()) for event in again)
    console.print(
        f"Replayed events {middle + 1} to {len(live)}: {size} bytes, identical byte for byte."
    )


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(printable(text), style))


def _line(event: RunEvent, seconds: float) -> Text:
    data = shortened(escaped(json.dumps(event.data, ensure_ascii=False)), 120)
    line = Text(f"{seconds:6.2f} s  ", style="dim")
    line.append(f"{event.seq:>4}  ", style="cyan")
    line.append(f"{event.type:<18} ", style="green")
    return line.append(data, style="default")
