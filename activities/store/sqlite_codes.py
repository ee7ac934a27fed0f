"""Vectors as one bit a dimension, beside those of a large share, so that a search reads 48 bytes of each and not 1,536.

A bit says on which side of the share's centre a vector lies in that dimension: without a centre the bits of models like
E5, whose vectors all lie in one direction, would hardly differ. The rows whose bits differ least from the query's are
candidates, and only those are compared exactly. This is binary quantisation with rescoring, as Yamada et al.
("Efficient Passage Retrieval with Hashing for Open-domain Question Answering", ACL 2021) put it to use.

The codes of a share stand in blocks, each under its lowest row id, so that what is added changes the last one.
"""

from collections.abc import Iterable, Sequence
from typing import cast

import apsw
import numpy as np
from numpy.typing import NDArray

BLOCK = 256
"""Codes of a block."""

Codes = NDArray[np.uint64]
Rows = NDArray[np.int64]


def _codes(vectors: Iterable[bytes], centre: bytes) -> Codes:
    """The code of each vector: a row of 64-bit words."""
    values = np.frombuffer(b"".join(vectors), dtype=np.float32).reshape(-1, len(centre) // 4)
    bits = np.packbits(values > np.frombuffer(centre, dtype=np.float32), axis=1)
    return np.pad(bits, ((0, 0), (0, -bits.shape[1] % 8))).view(np.uint64)


def _read(rows: bytes, codes: bytes) -> tuple[Rows, Codes]:
    numbers = np.frombuffer(rows, dtype=np.int64)
    return numbers, np.frombuffer(codes, dtype=np.uint64).reshape(len(numbers), -1)


def centre_of(vectors: Iterable[bytes], dimensions: int) -> bytes:
    """The mean of some vectors."""
    total, count = np.zeros(dimensions), 0
    for vector in vectors:
        total += np.frombuffer(vector, dtype=np.float32)
        count += 1
    return bytes((total / max(1, count)).astype(np.float32).tobytes())


def add(db: apsw.Connection, share: int, centre: bytes, vectors: Sequence[tuple[int, bytes]]) -> None:
    """Add the codes of vectors, given with their rows, which have none yet."""
    vectors = sorted(vectors)
    rows = np.array([row for row, _ in vectors], dtype=np.int64)
    codes = _codes((vector for _, vector in vectors), centre)
    at = 0
    while at < len(rows):
        first = int(rows[at])
        later = db.execute("select min(first) from codes where share = ? and first > ?", (share, first)).get
        until = len(rows) if later is None else int(rows.searchsorted(later))
        sql = "select first, records, bits from codes where share = ? and first <= ? order by first desc limit 1"
        found = db.execute(sql, (share, first)).fetchone()
        held, bits = _read(found[1], found[2]) if found else (rows[:0], codes[:0])
        # A row between two blocks has no other place than the lower one.
        room = BLOCK - len(held) if later is None else until - at
        if found is None or room <= 0:
            held, bits, room = rows[:0], codes[:0], BLOCK
        else:
            first = int(found[0])
        taken = slice(at, min(until, at + room))
        _put(db, share, first, np.concatenate([held, rows[taken]]), np.concatenate([bits, codes[taken]]))
        at = taken.stop


def _put(db: apsw.Connection, share: int, first: int, rows: Rows, codes: Codes) -> None:
    if len(rows):
        record = (share, first, rows.tobytes(), codes.tobytes())
        db.execute("insert or replace into codes(share, first, records, bits) values(?, ?, ?, ?)", record)
    else:
        db.execute("delete from codes where share = ? and first = ?", (share, first))


def remove(db: apsw.Connection, share: int, rows: Iterable[int]) -> None:
    """Remove the codes of rows, those that have any."""
    left = sorted(rows)
    while left:
        sql = "select first, records, bits from codes where share = ? and first <= ? order by first desc limit 1"
        found = db.execute(sql, (share, left[0])).fetchone()
        if found is None:
            left = left[1:]
            continue
        held, codes = _read(found[1], found[2])
        kept = ~np.isin(held, left)
        if not kept.all():
            _put(db, share, found[0], held[kept], codes[kept])
        gone = set(held[~kept].tolist()) | {left[0]}
        left = [row for row in left if row not in gone]


def nearest(db: apsw.Connection, share: int, centre: bytes, vector: bytes) -> Rows:
    """All rows of a share, in the order in which their codes differ from that of a vector, least first."""
    blocks = db.execute("select records, bits from codes where share = ? order by first", (share,)).fetchall()
    held, bits = (b"".join(cast(bytes, block[column]) for block in blocks) for column in (0, 1))
    rows, codes = _read(held, bits)
    differing = np.bitwise_count(codes ^ _codes([vector], centre))
    distances = np.zeros(len(rows), dtype=np.uint16)
    for word in range(codes.shape[1] if len(rows) else 0):
        distances += differing[:, word]
    return rows[distances.argsort(kind="stable")]
