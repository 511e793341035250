"""All faults, in the order of the table in docs/reliability.md."""

import arithmetic
import disks
import images_given
import jobs
import stops
import strangers
from injection import Fault

FAULTS: list[Fault] = [
    *stops.FAULTS,
    *jobs.FAULTS,
    *arithmetic.FAULTS,
    *disks.FAULTS,
    *images_given.FAULTS,
    *strangers.FAULTS,
]
