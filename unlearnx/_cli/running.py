"""The options that all commands have which run a study: where results go, and what is shown of them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from unlearnx._cli import options
from unlearnx._cli.output import Output


@dataclass(frozen=True)
class Running:
    """Where a command writes what its study finds, and what it shows of that."""

    out: options.Out = Path("runs")
    name: options.Name = None
    progress: options.Progress = True
    quiet: options.Quiet = False
    as_json: options.Json = False

    def output(self, command: str) -> Output:
        """What the command writes with."""
        return Output(command, quiet=self.quiet, as_json=self.as_json)

    @property
    def shows_progress(self) -> bool:
        """Whether there are progress bars."""
        return self.progress and not self.quiet

    def folder(self, title: str) -> Path:
        """Where a run goes: the given name, or a title with the time."""
        return self.out / (self.name or f"{title}-{datetime.now():%Y%m%d-%H%M%S}")
