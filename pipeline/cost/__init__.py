"""What a job will cost, before it runs: a probe of the device, multiplied by the plan."""
