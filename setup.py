"""Packages are found, not listed; conf/ lies outside of the one that carries it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["osrm_exp", "osrm_exp.*"]), "osrm_exp.conf"])
