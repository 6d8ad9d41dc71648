"""Tests, one folder for each package; tests/tiny.py makes the models."""
