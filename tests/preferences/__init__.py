"""Tests of preference files."""
