"""Readers, one file a family of formats. Each turns a parsed row into comparison records."""
