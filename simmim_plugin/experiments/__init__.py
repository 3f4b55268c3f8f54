"""Comparisons of many runs, and their reports."""
