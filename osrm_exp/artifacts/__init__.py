"""How the expensive stages are made: a task's statistic, a fine-tuned adapter."""

from osrm_exp.artifacts.workshop import Workshop as Workshop
