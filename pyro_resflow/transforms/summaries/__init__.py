"""Summarize a flow as a table of its transforms."""
