"""What each stage does. One card a stage: config class, SPEC, run()."""
