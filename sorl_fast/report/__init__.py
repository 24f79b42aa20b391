"""Tables and pictures of one or more runs."""

from .page import write_report
from .table import terminal_table

__all__ = ["terminal_table", "write_report"]
