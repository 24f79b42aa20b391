"""Tables and pictures of one or more runs."""

from .page import terminal_table, write_report

__all__ = ["terminal_table", "write_report"]
