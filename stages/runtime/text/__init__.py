"""From messages to token ids and back: chat templates, stop tokens, the text contract, raw text."""
