"""Experts: policies that move a body as they are told, trained here by SAC, whose doings are data."""
