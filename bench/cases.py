"""All that can be measured, in the order in which it is."""

from bench import leasing, storing, watching, workloads

CASES = (*workloads.CASES, *watching.CASES, *leasing.CASES, *storing.CASES)
