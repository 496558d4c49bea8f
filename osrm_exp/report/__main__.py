"""`python -m osrm_exp.report results/EXPERIMENT [BASELINE_INIT]` rebuilds tables and figures."""

import sys

from osrm_exp.report.tables import main

if len(sys.argv) not in (2, 3):
    sys.exit("usage: python -m osrm_exp.report results/EXPERIMENT [BASELINE_INIT]")
try:
    main(*sys.argv[1:])
except ValueError as error:
    sys.exit(f"osrm_exp: {error}")
