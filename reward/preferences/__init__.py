"""Preference files: records, readers, checks, agreement, splits. Never imports torch."""
