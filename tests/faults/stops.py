"""Processes that are stopped or killed."""

from injection import Fault

FAULTS: list[Fault] = []
