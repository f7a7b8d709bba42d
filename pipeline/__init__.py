"""Batch editing on Ray: a job file and a manifest go in, a run folder of committed parts comes out.

    job ──┐                        ┌─ judge ─┐
          ├─ plan ─ cluster ─ read ┤         ├─ write ─ ledger
 manifest ┘                        └─ edit ──┘
                    run drives it;  verify and report read what it left;  cost says it beforehand
                    storage and supervision are under all of it

Imports run down this list (tests/test_house.py): cost, verify, report > run > cluster > plan, edit
> judge, write > job, read > manifest, ledger > storage, supervision > errors, logs, redact.
"""
