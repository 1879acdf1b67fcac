"""Exports a run to a model folder, with the exporter of the run's family."""

from pathlib import Path

from workloads.engine.export.export import Exported, silent
from workloads.engine.pretrained.files import Reporter
from workloads.run import Run
from workloads.vla.family import family_of


class VlaExporter:
    """`engine.export.exporter.Exporter` of the run's family."""

    def export(
        self,
        run: Run,
        out: Path | None = None,
        *,
        checkpoint: Path | None = None,
        merge: bool | None = None,
        report: Reporter = silent,
    ) -> Exported:
        """See `Exporter.export`."""
        exporter = family_of(run.config()).exporter
        return exporter.export(run, out, checkpoint=checkpoint, merge=merge, report=report)


EXPORTER = VlaExporter()
