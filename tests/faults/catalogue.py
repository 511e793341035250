"""All faults, in the order of the table in docs/reliability.md."""

import disks
import jobs
import pictures
import stops
import strangers
from injection import Fault

FAULTS: list[Fault] = [*stops.FAULTS, *jobs.FAULTS, *disks.FAULTS, *pictures.FAULTS, *strangers.FAULTS]
