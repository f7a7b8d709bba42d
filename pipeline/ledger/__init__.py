"""The commit protocol: what a run writes in which order, when it is valid, what a crash leaves.

     written                                    by       meaning once it is written
  1  .lease/holder-<token>.json                 driver   only this run may write here
     .ledger/outcomes-<n>.parquet, no rows      driver   a fence, if the earlier holder did not
                                                         release the lease: it cannot commit now
  2  .plan/<plan>/work-<n>.parquet, plan.json   driver   the work that is left is known
  3  .metadata-schema, config.yaml, README.md   driver   the folder can be loaded, though unfinished
  4  part-<id>/edited/*, source/*, mask/*,      actors   nothing yet: no metadata names them
     carried/*
     rejected/part-<id>/*, the same             actors   nothing yet
     .outcomes/part-<id>-<hash>.parquet         actors   nothing yet: the outcomes of 5, and the
     .outcomes/part-<id>-<hash>-rejected.parquet         metadata of the rejected edits of 5
  5  part-<id>/metadata.parquet                 actors   the part's edits are in the dataset
     rejected/part-<id>/metadata.parquet        actors   its rejected edits are in their table
  6  .ledger/outcomes-<n>.parquet               driver   its edits are done
     ... 4 to 6 for every block of work, many at a time; under quotas 2 again, round by round ...
  7  README.md, stats.json                      driver   nothing: they are summaries
  8  .lease/beat-<token>.json: released         driver   the next run may start

See `lease` for 1 and 8, `ledger` for the fence and 6, `pipeline.plan` for 2, `pipeline.run` for 3
and 7, `pipeline.write.part` for 4 and 5.

The first file of 5 commits a part and also contains everything that the second has. A part without
an accepted edit has only the second, which then commits it.

A file is written as a whole or does not exist. The heartbeat and the summaries (config.yaml and
README.md of 3, the files of 7, the contact sheet and the report, which no program reads) may be
replaced. Everything else goes through `Folder.write_new`: an exclusive create; nothing is renamed
on an object store, nothing is overwritten. Before 5 and 6 the lease is checked. Names of 2, 4 and 5
come from content, the number of 6 is the next free one. A failed edit, and a rejected one that is
not kept, has no image files; its outcome is stored in the outcomes of its part if the part has
metadata, else in the ledger alone. Metadata, outcomes and ledger files have a hash of their content
(`checked_file`), and the outcomes have those of the images, so damage is noticed.

What a crash leaves, and how the next run repairs it:

  after  1    a lease without a holder. It is taken over at once if the process is known to be gone,
              else when it expires; a fence is written, which counts as no outcome.
  within 2    work files that no plan.json names. They are never read; the same plan reuses them.
  after  2-3  a plan of which nothing is done. A new one is made.
  within 4    images and outcomes that no metadata names, invisible to `datasets`. The same work
              reuses them if it makes the same bytes; else it leaves them, and adds a hash to its
              own names.
  within 5    a part whose rejected edits have no table. As after 5; the table is written first.
  after  5    a finished part that is not in the ledger. `adopt_orphan_parts` commits it before
              anything is planned, so it is never made again. The same for a part of which only some
              outcomes are in the ledger, because they came with two commits.
  after  6    nothing to repair: the edits are done, and the plan leaves them out.
  before 7    outdated summaries; a run that finds nothing to do writes them again.
  before 8    as after 1.

Retries of failed edits (`fpe retry`) follow the same steps from 2 to 8. In 6 the new outcome is a
later row, which supersedes the failure; the failure's row stays. The part of a retry never has the
name of a finished part: the name is the hash of the edits attempted in the part, a finished part
contains an accepted or rejected edit, and those are never retried. A retry that is killed leaves
what any run leaves. The edits that it had committed, or finished, no longer count as failed, and
the same command retries the rest.

Listings are used for three things: which tokens, which ledger files and which parts exist. If a
listing misses a token or a ledger file, the exclusive create finds the name taken, and the run
stops or lists again. If it misses a part, the part is made again: under the same name if the block
is the same (then its metadata is found and kept), else a second time, which `fpe verify` reports.
The stores named in `storage.folder` list every file that was written before the listing.
"""
