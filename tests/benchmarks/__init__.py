"""Measured claims: programs to run by hand, never collected as tests."""
