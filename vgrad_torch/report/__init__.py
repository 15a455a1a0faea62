"""Reports on logged runs, and comparisons of several: verdict, tables and figures, in the terminal or as HTML."""

from vgrad_torch.report.comparison import Comparison as Comparison
from vgrad_torch.report.comparison import compare as compare
from vgrad_torch.report.report import Report as Report
