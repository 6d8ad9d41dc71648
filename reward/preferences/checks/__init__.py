"""Checks, one file a group."""
