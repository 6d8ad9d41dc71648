"""The round trip to annotation tools: comparisons out as tasks, judgements back as votes."""
