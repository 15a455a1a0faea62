"""Tests of a model on one batch before training: `preflight` judges the model, `what_if` tries remedies on copies."""
