"""The version, in one place: pyproject.toml, the CLI and the policy reports read it from here."""

__version__ = "0.1.0"
