"""Stages without models, for tests of the engine. A run file names them by module."""
