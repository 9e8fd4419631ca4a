"""A trajectory as one page of HTML that needs nothing else."""

from rlm_containers.report.page import render_report, write_report

__all__ = ["render_report", "write_report"]
