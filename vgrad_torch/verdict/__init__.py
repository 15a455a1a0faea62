"""From snapshots to a verdict: what is wrong, the evidence, and what to do."""
