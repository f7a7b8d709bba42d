"""The commit protocol: what a run writes in which order, when it counts, what a crash leaves.

     written                                    by       from then on
  1  .lease/holder-<token>.json                 driver   this run alone writes here
     .ledger/outcomes-<n>.parquet, no rows      driver   a fence, where an earlier holder did not
                                                         let go: it cannot commit any more
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

See `lease` for 1 and 8, `ledger` for the fence and 6, `plan` for 2, `run` for 3 and 7,
`part_writer` for 4 and 5.

The first file of 5 commits a part and holds all that the second has. A part without an accepted
edit has only the second, which commits it.

Every write is whole or not there. All but the summaries (config.yaml and README.md of 3, and 7; the
contact sheet and the report, which a person asks for and nothing reads) and
the heartbeat go through `Folder.write_new`: an exclusive create, nothing is renamed on an object
store, nothing is overwritten. Before 5 and 6 the lease is checked. Names of 2, 4 and 5 come from
content, the number of 6 is the next one. A failed edit, and a rejected one that is not kept, has no
files; its outcome travels in the metadata of its part where the part has any, else it only enters
the ledger.

What a crash leaves, and how the next run mends it:

  after  1    a lease that nobody holds: taken over at once where the process is known to be gone,
              else when it expires; the fence goes up. A fence counts nothing.
  within 2    work files that no plan.json names: never read. The same plan finds and keeps them.
  after  2-3  a plan in which nothing is done. A new one is made.
  within 4    images that nothing names, invisible to `datasets`. The same work makes the same names
              and keeps them; other work leaves them alone.
  within 5    a part whose rejected edits are in no table: as after 5, which writes it first.
  after  5    a finished part that is not in the ledger: `adopt_orphan_parts` commits it, before
              anything is planned, so it is never made again. Same for one that was committed by
              half, because its outcomes came with two commits.
  after  6    nothing to mend: done is done, the plan leaves it out.
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
is the same (then its metadata is found and kept), else a second time, which `fpe verify` tells. The
stores named in `storage` list every file that was written before they were asked.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import logging
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import LedgerError
from pipeline.ledger import Ledger
from pipeline.outcome import (
    OUTCOMES_METADATA_KEY,
    EditKey,
    outcomes_from_bytes,
    outcomes_table,
)
from pipeline.storage import Folder

METADATA_FILE = "metadata.parquet"
PART_PREFIX = "part-"
REJECTED_FOLDER = "rejected"
"""Beside the parts, where no dataset looks unless it is asked to: rejected/part-<id>/."""
REJECTED_METADATA_KEY = b"fpe.rejected"
"""Key in the schema metadata of a part's metadata.parquet: the file of its rejected edits."""
_log = logging.getLogger(__name__)


def rejected_part(part: str) -> str:
    """The folder of the rejected edits of a part, within the run folder."""
    return f"{REJECTED_FOLDER}/{part}"


def finished_parts(folder: Folder, besides: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """The folders that have metadata, of accepted edits and of rejected ones; `besides` apart."""
    rejected = (rejected_part(name) for name in folder.list_folders(REJECTED_FOLDER))
    for name in itertools.chain(folder.list_folders(), rejected):
        if not name.rpartition("/")[2].startswith(PART_PREFIX) or name in besides:
            continue
        if folder.exists(f"{name}/{METADATA_FILE}"):
            yield name


def committing_folders(folder: Folder, besides: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """Of every finished part the folder whose metadata commits it; those in `besides` apart."""
    seen: set[str] = set()
    for name in finished_parts(folder, besides):  # those of the parts themselves come first
        part = name.rpartition("/")[2]
        if part not in seen:
            yield name
        seen.add(part)


def restore_rejected_metadata(folder: Folder, part: str) -> None:
    """Writes the metadata of a part's rejected edits where it is missing, out of the part's own.

    Nothing to do for a part without rejected edits that were kept. Raises StorageError, and
    LedgerError for metadata that is damaged.
    """
    path = f"{part}/{METADATA_FILE}"
    if not folder.exists(path):
        return
    data = folder.read(path)
    try:
        stored = (pq.read_schema(io.BytesIO(data)).metadata or {}).get(REJECTED_METADATA_KEY)
        table = None if stored is None else base64.b64decode(stored, validate=True)
    except (pa.ArrowException, binascii.Error) as error:
        raise LedgerError(f"{folder.url_of(path)} is damaged ({error})") from error
    if table is not None:
        folder.write_if_absent(f"{rejected_part(part)}/{METADATA_FILE}", table)


def uncommitted(folder: Folder, ledger: Ledger, part: str) -> pa.Table:
    """The outcomes of a finished part that the ledger lacks. Raises LedgerError."""
    outcomes = read_part_outcomes(folder, part)
    return outcomes.filter(pa.array(ledger.lacks(outcomes), pa.bool_()))


def orphan_parts(folder: Folder, ledger: Ledger) -> Iterator[tuple[str, pa.Table]]:
    """Finished parts with outcomes that the ledger lacks: (name, those outcomes).

    A run that is killed between writing a part's metadata and committing it leaves one.
    """
    for part in committing_folders(folder, besides=ledger.settled_parts()):
        outcomes = uncommitted(folder, ledger, part)
        if outcomes.num_rows:
            yield part, outcomes


def adopt_orphan_parts(
    folder: Folder, ledger: Ledger, committed: Callable[[pa.Table], None] = lambda _: None
) -> int:
    """Commits the outcomes of finished parts that no ledger file names; returns how many edits.

    Runs at the start of a run, before planning, so that no finished edit is made again. `committed`
    is told what came in.
    """
    adopted = 0
    for part, outcomes in orphan_parts(folder, ledger):
        if not part.startswith(REJECTED_FOLDER):
            restore_rejected_metadata(folder, part)
        added = ledger.commit(outcomes)
        committed(added)
        _log.info("adopted %d finished edits of %s", added.num_rows, part)
        adopted += added.num_rows
    return adopted


def read_part_outcomes(folder: Folder, part: str) -> pa.Table:
    """The outcomes of a finished part.

    Its metadata carries all of them (`outcomes_to_bytes`); where it does not, the accepted ones are
    read off its rows, with row -1 and no times. Raises LedgerError for metadata that is damaged.
    """
    path = f"{part}/{METADATA_FILE}"
    file = io.BytesIO(folder.read(path))
    try:
        stored = (pq.read_schema(file).metadata or {}).get(OUTCOMES_METADATA_KEY)
        if stored is not None:
            return outcomes_from_bytes(stored)
        columns = ["edit_id", "group_id", "source_id", "target_prompt", "edited_file_name"]
        rows = pq.read_table(file, columns=columns).to_pylist()
        return outcomes_table(
            EditKey(
                edit_id=bytes.fromhex(row["edit_id"]),
                group_id=bytes.fromhex(row["group_id"]),
                source_id=bytes.fromhex(row["source_id"]),
                row=-1,
                target_prompt=row["target_prompt"],
            ).accepted(
                part=part,
                edited_file_name=f"{part}/{row['edited_file_name']}",
                unet_rows=0.0,
                seconds=0.0,
            )
            for row in rows
        )
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"{folder.url_of(path)} is damaged or no metadata of a run ({error}); move the folder "
            "away: its edits are made again"
        ) from error
