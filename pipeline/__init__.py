"""How a run goes: config, plan, manifest, store, launch, track, report. Never imports torch."""
