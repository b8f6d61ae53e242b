"""Everything that a job's directory holds of its results: written from the rows, removed when they change."""

from pathlib import Path

from fedhess.base.files import replace_file, writing
from fedhess.jobs.job import Job
from fedhess.results.columns import Summary
from fedhess.results.figures import WIDTHS, WITH_PDF
from fedhess.results.formats import csv_table, latex_table
from fedhess.results.job_figures import draw_figures, job_panels
from fedhess.results.page import render_page
from fedhess.results.selection import Recorded
from fedhess.results.summary import target_confusions, write_summary

PAGE = "report.html"
FIGURES = (*(f"{name}{width}" for name in ("rounds", "bytes", "domains") for width in WIDTHS), "confusion_*")
RESULTS = (
    *("summary.json", "summary.md", "selection.json", "selection.md", "table.tex", "table.csv", PAGE),
    *(f"figures/{name}{ending}" for name in FIGURES for ending in WITH_PDF),
)


def clear_results(path: Path) -> bool:
    """Remove all results from a job's directory, whose rows change or have changed; return whether a page was there."""
    there = [file for pattern in RESULTS for file in path.glob(pattern)]
    with writing(path):
        for file in there:
            file.unlink()
    return path / PAGE in there


def write_all(job: Job, recorded: Recorded, summary: Summary) -> list[Path]:
    """Write the summary, table.tex, table.csv, report.html and every figure; the titles in them name a stand-in."""
    panels, confused = job_panels(job, recorded, summary), target_confusions(job, recorded)
    texts = {
        "table.tex": latex_table(summary),
        "table.csv": csv_table(summary),
        PAGE: render_page(job, summary, panels, confused),
    }
    written = write_summary(job, summary)
    with writing(job.path):
        for name, text in texts.items():
            replace_file(job.path / name, (text.rstrip("\n") + "\n").encode())
            written.append(job.path / name)
        written += draw_figures(job, recorded, summary, panels)
    return written
