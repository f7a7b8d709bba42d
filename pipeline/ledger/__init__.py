"""The commit protocol: what a run writes in which order, when it counts, what a crash leaves.

     written                                    by       from then on
  1  .lease/holder-<token>.json                 driver   this run alone writes here
     .ledger/outcomes-<n>.parquet, no rows      driver   a fence, if an earlier holder did not
                                                         release: it cannot commit any more
  2  .plan/<plan>/work-<n>.parquet, plan.json   driver   it is known what is left
  3  .metadata-schema, config.yaml, README.md   driver   the folder loads, unfinished as it is
  4  part-<id>/edited/*, source/*, mask/*       actors   nothing: no metadata names them
     rejected/part-<id>/*, the same             actors   nothing
  5  part-<id>/metadata.parquet                 actors   the part's edits are in the dataset
     rejected/part-<id>/metadata.parquet        actors   its rejected edits are in their table
  6  .ledger/outcomes-<n>.parquet               driver   its edits are done
     ... 4 to 6 for every block of work, many at a time; under quotas 2 again, round by round ...
  7  README.md, stats.json                      driver   nothing: they are summaries
  8  .lease/beat-<token>.json: released         driver   the next run may start

See `lease` for 1 and 8, `ledger` for the fence and 6, `pipeline.plan` for 2, `pipeline.run` for 3
and 7, `pipeline.write.part` for 4 and 5.

The first file of 5 commits a part and holds all that the second has. A part without an accepted
edit has only the second, which commits it.

Every write is whole or not there. All but the summaries (config.yaml and README.md of 3, and 7; the
contact sheet and the report, which a person asks for and nothing reads) and
the heartbeat go through `Folder.write_new`: an exclusive create, nothing is renamed on an object
store, nothing is overwritten. Before 5 and 6 the lease is checked. Names of 2, 4 and 5 come from
content, the number of 6 is the next one. A failed edit, and a rejected one that is not kept, has no
files; its outcome travels in the metadata of its part where the part has any, else it only enters
the ledger.

What a crash leaves, and how the next run repairs it:

  after  1    a lease that nobody holds: taken over at once if the process is known to be gone,
              else when it expires; the fence goes up. A fence counts nothing.
  within 2    work files that no plan.json names: never read. The same plan finds and keeps them.
  after  2-3  a plan in which nothing is done. A new one is made.
  within 4    images that nothing names, invisible to `datasets`. The same work makes the same names
              and keeps them; other work leaves them alone.
  within 5    a part whose rejected edits are in no table: as after 5, which writes it first.
  after  5    a finished part that is not in the ledger: `adopt_orphan_parts` commits it, before
              anything is planned, so it is never made again. Same for one that was committed by
              half, because its outcomes came with two commits.
  after  6    nothing to repair: done is done, the plan leaves it out.
  before 7    summaries that lag behind; a run that finds nothing to do writes them again.
  before 8    as after 1.

Failed edits that are tried again (`fpe retry`) go the same way from 2 to 8; in 6 their new outcome
is a later row and supersedes the failure, which stays. Their part never has the name of a finished
one: a part's name is the hash of the edits attempted in it, a finished part holds an accepted or
rejected edit, and none of these is ever tried again. A retry that is killed leaves what any run
leaves; what it had committed, or finished, no longer stands as failed, and the same command tries
the rest.

Listings are asked for three things: which tokens, which ledger files and which parts there are. A
token or number that a listing failed to show is found taken by its create, and the run stops or
looks again. A part that it failed to show would be made again: under the same name where the block
is the same (then its metadata is found and kept), else a second time, which `fpe verify` finds. The
stores named in `storage.folder` list every file that was written before they were asked.
"""
