"""The verdict: from snapshots to evidence, a rule that applies, the causes and what to do. No torch."""

from vgrad_torch.verdict.diagnosis import Diagnosis as Diagnosis
from vgrad_torch.verdict.diagnosis import diagnose as diagnose
