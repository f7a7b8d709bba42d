"""Estimates the cost of a job before it runs, from a plan and times measured on a device."""
