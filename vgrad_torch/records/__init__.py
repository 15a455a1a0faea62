"""Records: what was measured, as plain numbers without torch."""

from vgrad_torch.records.histogram import CODES as CODES
from vgrad_torch.records.histogram import Counts as Counts
from vgrad_torch.records.histogram import Floats as Floats
from vgrad_torch.records.histogram import Histogram as Histogram
from vgrad_torch.records.history import History as History
from vgrad_torch.records.snapshot import ACTIVATIONS as ACTIVATIONS
from vgrad_torch.records.snapshot import QUANTITIES as QUANTITIES
from vgrad_torch.records.snapshot import JunctionSnapshot as JunctionSnapshot
from vgrad_torch.records.snapshot import LayerSnapshot as LayerSnapshot
from vgrad_torch.records.snapshot import Snapshot as Snapshot
from vgrad_torch.records.snapshot import with_activation_gains as with_activation_gains
from vgrad_torch.records.stats import Stats as Stats
from vgrad_torch.records.time_profile import TimeProfile as TimeProfile
from vgrad_torch.records.time_profile import last_alone as last_alone
