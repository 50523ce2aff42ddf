"""The command that examines an installation."""

from __future__ import annotations

import click


@click.command("doctor")
def doctor_command() -> None:
    """Report what is installed, what this machine offers, what is wrong, and the command that fixes it."""
    from emformer_hub.doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{'ok ' if finding.remedy is None else 'BAD'} {finding.what:<19} {finding.found}")
        if finding.remedy is not None:
            click.echo(f"{'':<24}{finding.remedy}")
    if any(finding.remedy for finding in findings):
        raise SystemExit(1)
