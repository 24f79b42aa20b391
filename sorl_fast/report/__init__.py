"""Tables and pictures of one or more runs."""

from .page import write_report
from .study import is_study
from .study_page import write_study
from .table import terminal_table

__all__ = ["is_study", "terminal_table", "write_report", "write_study"]
