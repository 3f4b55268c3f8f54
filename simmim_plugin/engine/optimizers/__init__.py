"""Optimizer wrapper for mixed precision, and parameter groups."""
