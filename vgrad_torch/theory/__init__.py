"""What mean-field theory predicts for an MLP before training. NumPy only, no torch."""

from vgrad_torch.theory.criticality import Criticality as Criticality
from vgrad_torch.theory.prediction import LayerPrediction as LayerPrediction
from vgrad_torch.theory.prediction import Prediction as Prediction
from vgrad_torch.theory.prediction import predict as predict
