"""Bridges to other attack libraries. Each file needs its own extra, so nothing is imported here."""
