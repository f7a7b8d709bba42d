"""The Ray Data job: one file per station, in the order data passes.

manifest -> prompts -> plan -> decode -> edit_actor -> write -> ledger -> stats; verify and status
read what they left. Imports run downward only: jobs -> pipeline -> fpe_core.
"""
