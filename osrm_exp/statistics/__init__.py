"""What a sample of a task's data looks like to a model."""

from osrm_exp.statistics.fisher import fisher as fisher
from osrm_exp.statistics.fisher import output_gram as output_gram
from osrm_exp.statistics.moments import gram as gram
from osrm_exp.statistics.moments import mean as mean
