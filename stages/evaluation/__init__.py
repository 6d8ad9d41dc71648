"""Side by side: every checkpoint answers the same prompts and is measured the same way."""
