"""Checks that need a GPU, by one command: python -m tests.gpu.run. Normal tests rehearse them on a CPU."""
