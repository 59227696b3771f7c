"""`arkloop doctor`: look at settings, servers, schema and work, and say what to do."""

import os
import sys
from collections.abc import Sequence

import click
from sqlalchemy.exc import DBAPIError

from arkloop.cli.doctor import (
    event_checks,
    postgres_checks,
    postgres_failures,
    postgres_hosts,
    redis_checks,
    restore_checks,
    secret_checks,
    settings_checks,
    work_checks,
    write_checks,
)
from arkloop.cli.doctor.findings import Finding, Level, worst
from arkloop.cli.output import print_json, print_line
from arkloop.shared.config import Settings, variable_of

#: What needs the schema, by the name of the finding where a check cannot be carried out.
_CHECKS = {
    "schema objects": restore_checks.of_objects,
    "event partitions": event_checks.of_events,
    "lost events": restore_checks.of_events,
    "secrets": secret_checks.of_secrets,
    **work_checks.CHECKS,
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Check settings, servers, schema, workers and queues, and say what to do.

    Run it with the environment of the web and worker processes. It changes nothing but a key in
    Redis that lives for 0.1 s, publishes a message that nobody reads, writes 64 KiB to a file
    without a name, and takes a few seconds if servers do not respond. The exit status is 1 if a
    finding fails.
    """
    findings = examine()
    if as_json:
        print_json(
            {
                "status": worst(findings),
                "findings": [
                    {
                        "check": finding.check,
                        "status": finding.level,
                        "text": finding.text,
                        "advice": finding.advice or None,
                    }
                    for finding in findings
                ],
            }
        )
    else:
        _print(findings)
    sys.exit(1 if worst(findings) is Level.FAIL else 0)


def examine() -> list[Finding]:
    """Look at everything that can be looked at."""
    settings, findings = settings_checks.of_environment(os.environ)
    if settings is None:
        return findings
    return [*findings, *_postgres(settings), *redis_checks.of_servers(settings)]


def _postgres(settings: Settings) -> list[Finding]:
    url, variable = settings.database_url, variable_of("ARKLOOP_DATABASE_URL")
    engine = postgres_checks.engine_of(url)
    try:
        findings = postgres_checks.of_server("postgres", variable, url, engine)
        if findings[0].level is Level.FAIL:
            return findings
        heartbeat = settings.heartbeat_seconds
        findings += postgres_hosts.of_hosts("postgres", variable, url, heartbeat)
        if direct := settings.direct_database_url:
            findings += postgres_hosts.of_hosts(
                "direct postgres", "ARKLOOP_DIRECT_DATABASE_URL", direct, heartbeat
            )
        findings += postgres_checks.of_pooler(settings, engine)
        of_schema = postgres_checks.examined("schema", postgres_checks.of_schema, settings, engine)
        findings += of_schema
        if worst(of_schema) is not Level.FAIL:
            if waiting := write_checks.of_commits(engine):
                return [*findings, *waiting]  # not even heartbeats are stored: all else follows
            findings += write_checks.of_writes(engine)
            for name, check in _CHECKS.items():
                findings += postgres_checks.examined(name, check, settings, engine)
    except DBAPIError as error:
        findings.append(postgres_failures.unreachable("postgres", variable, url, error))
    finally:
        engine.dispose()
    return findings


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print_line(f"{finding.level:4}  {finding.check:{width}}  {finding.text}")
        if finding.advice:
            print_line(f"      {'':{width}}  → {finding.advice}")
    count = {level: sum(finding.level is level for finding in findings) for level in Level}
    print_line(
        f"{count[Level.OK]} ok, {count[Level.WARN]} to look into, {count[Level.FAIL]} to repair"
    )
