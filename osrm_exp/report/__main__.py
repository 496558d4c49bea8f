"""`python -m osrm_exp.report results/EXPERIMENT` rebuilds tables and figures from rows.

`--baseline INIT` adds paired differences from an arm, `--published FILE` what others published.
"""

import argparse
import sys
from pathlib import Path

from osrm_exp.report.report import write_report
from osrm_exp.status import unfinished

parser = argparse.ArgumentParser("python -m osrm_exp.report", description=__doc__)
parser.add_argument("results", help="a results folder, with rows/ in it")
parser.add_argument("--baseline", help="the init that all others are compared with")
parser.add_argument("--delta", type=float, default=1.0, help="points that count as equivalent")
parser.add_argument("--published", help="numbers of others, as figures/known_results.csv")
given = parser.parse_args()
try:
    more = []  # first: an arm or a file that is not there is told before anything is written
    if given.baseline:
        from osrm_exp.report.paired_tables import write_paired  # statsmodels: seconds to import

        more.append(write_paired(given.results, given.baseline, delta=given.delta))
    if given.published:
        from osrm_exp.report.published import write_published

        more.append(write_published(given.results, given.published))
    print(write_report(given.results))
    if lacking := unfinished(Path(given.results)):
        print(f"\nThe sweep is not complete. {lacking}")
    for text in more:
        print(f"\n{text}")
except ValueError as error:
    sys.exit(f"osrm_exp: {error}")
