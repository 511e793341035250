"""All faults, in the order of the table in docs/reliability.md."""

import disks
import pictures
import stops
import strangers
from injection import Fault

FAULTS: list[Fault] = [*stops.FAULTS, *disks.FAULTS, *pictures.FAULTS, *strangers.FAULTS]
