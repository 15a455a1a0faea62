"""Training one network: recipe, set-up, the loop, a run from start to verdict (or resumed), its folder, checkpoints."""

from vgrad_torch.training.loop import train as train
from vgrad_torch.training.nonfinite import NonFiniteError as NonFiniteError
from vgrad_torch.training.run_folder import RunFolder as RunFolder
from vgrad_torch.training.runner import Result as Result
from vgrad_torch.training.runner import Stopped as Stopped
from vgrad_torch.training.runner import run as run
from vgrad_torch.training.setup import Setup as Setup
from vgrad_torch.training.setup import sampling as sampling
from vgrad_torch.training.setup import set_up as set_up
