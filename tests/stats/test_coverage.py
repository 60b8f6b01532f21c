"""A small version of docs/results/coverage.md: intervals and verdicts are right as often as they promise.

Each share is of studies with a fixed seed, so it is one number, which has to stay what the page's row says within three standard
errors, and to the bit what it was: a change of an interval or verdict moves it.
"""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulation import coverage, coverage_page
from benchmarks.simulation.reported_studies import CASES
from benchmarks.simulation.simulated_studies import SPREADS, CurveStudy

pytestmark = pytest.mark.slow
EXACT = 0.005  # a share of studies with a fixed seed; another library version may turn a study or two
STUDIES = 400
