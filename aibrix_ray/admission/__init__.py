"""Who waits for a place at a replica, and who goes next. One `AdmissionQueue` a model and gateway.

Pure. Which ticket goes next is a `Discipline`; how many may wait, and for how long, is the queue's.
"""

from aibrix_ray.admission.discipline import Discipline
from aibrix_ray.admission.priority import PriorityWithAging
from aibrix_ray.admission.queue import AdmissionQueue
from aibrix_ray.admission.ticket import Ticket

__all__ = ["AdmissionQueue", "Discipline", "PriorityWithAging", "Ticket"]
